"""One consumer of `scores` for every client of the updates stream.

Each client has a `Feed`, a bounded queue of messages that are encoded once for all. A burst waits
a second at most for clients that are not through with what came before. One that needs longer
loses its oldest updates and is told how many, and nobody waits for it again until it has caught
up: memory and delay stay bounded. Of what is on the stream:

    event: update   data: the document               as published (contracts/value.json)
    event: erased   data: {"user_id", "erased"}      the user was erased
    event: lost     data: {"updates"}                this client was too slow: so many are gone
    event: away     data: {"message"}                the broker does not answer; the stream holds
    event: back     data: {"missed"}                 it answers; missed: were updates left out?
    : comment                                        heartbeat of a silent stream

A client that connects again asks for the values that it shows: the stream begins with now.

Source: WHATWG HTML, section 9.2 "Server-sent events".
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from streams.connection import aiokafka_options, stop
from streams.errors import LogUnavailable, StreamsError, TopicError
from streams.settings import KafkaSettings

ROOM = 1000  # updates that wait for one client: two seconds of a busy worker, about 2 MB
CLIENTS = 1000  # at once: a file descriptor each, of the 1,024 that many systems allow by default
HEARTBEAT_S = 15.0  # proxies close a connection that is silent for 30 to 60 s
_CHUNK = 64 << 10  # bytes handed to the socket at once; what waits beyond can still be dropped
_POLL_MS = 500
_PAGE = 200  # records broadcast in one step
_PATIENCE_S = 1.0
_LOOK_S = 5.0  # of silence until the broker is asked whether it is there
_ANSWER_S = 4.0
_AGAIN_S = 2.0


def message(event: str, data: bytes, where: str = "") -> bytes:
    r"""One event on the wire.

    >>> message("lost", b'{"updates":3}')
    b'event: lost\ndata: {"updates":3}\n\n'
    """
    # JSON has line breaks between values only, where they may as well be spaces.
    line = data.replace(b"\r", b" ").replace(b"\n", b" ")
    place = f"id: {where}\n".encode() if where else b""
    return b"event: %b\n%bdata: %b\n\n" % (event.encode(), place, line)


class TooMany(Exception):
    """As many clients as one process serves are connected."""


class Feed:
    """What waits for one client; user None = updates of all."""

    def __init__(self, user: str | None, room: int = ROOM) -> None:
        self.key = None if user is None else user.encode()
        self._waiting: deque[bytes] = deque()
        self._room = room
        self._lost = 0
        self._some = asyncio.Event()
        self._ended = False
        self.behind = False  # was waited for in vain, and has not caught up since

    @property
    def crowded(self) -> bool:
        """Would another page push out what waits?"""
        return len(self._waiting) + _PAGE > self._room

    def put(self, text: bytes) -> None:
        """Queue a message; where there is no room the oldest gives way."""
        if len(self._waiting) >= self._room:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(text)
        self._some.set()

    def end(self) -> None:
        """Nothing comes after what waits."""
        self._ended = True
        self._some.set()

    async def chunks(self, heartbeat_s: float = HEARTBEAT_S) -> AsyncIterator[bytes]:
        """Bytes for the socket, at least one piece each `heartbeat_s`; until `end`."""
        # At once, so that a client knows that it listens; and how soon to come again.
        yield b"retry: 2000\n: listening\n\n"
        while True:
            if self._lost:
                lost, self._lost = self._lost, 0
                yield message("lost", b'{"updates":%d}' % lost)
            elif self._waiting:
                parts, size = [], 0
                while self._waiting and size < _CHUNK:
                    parts.append(self._waiting.popleft())
                    size += len(parts[-1])
                yield b"".join(parts)
            elif self._ended:
                return
            else:
                self.behind = False
                self._some.clear()
                try:
                    await asyncio.wait_for(self._some.wait(), heartbeat_s)
                except TimeoutError:
                    yield b": heartbeat\n\n"


class Updates:
    """Reads the topic while `run` runs, from now on, and hands each update to the feeds."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self.trouble = "the updates are not being read yet: try again in a few seconds"
        self._kafka = kafka
        self._feeds: set[Feed] = set()
        self._ended = False

    def check(self) -> None:
        """LogUnavailable while the broker is away, TooMany where no more clients are served."""
        if self.trouble:
            raise LogUnavailable(self.trouble)
        if len(self._feeds) >= CLIENTS:
            raise TooMany

    @contextmanager
    def feed(self, user: str | None) -> Iterator[Feed]:
        """A feed that is served while the block lasts."""
        feed = Feed(user)
        if self._ended:
            feed.end()
        self._feeds.add(feed)
        try:
            yield feed
        finally:
            self._feeds.discard(feed)

    @property
    def clients(self) -> int:
        """How many listen."""
        return len(self._feeds)

    def end(self) -> None:
        """End all streams, those that begin later too."""
        self._ended = True
        for feed in self._feeds:
            feed.end()

    async def run(self) -> None:
        """Read until cancelled; a broker that is away is tried again."""
        missed = False
        while True:
            try:
                await self._read(missed)
            except StreamsError as error:
                self._away(str(error))
            except (KafkaError, OSError) as error:
                self._away(self._silent(error))
            # A new consumer begins at the end of the topic.
            missed = True
            await asyncio.sleep(_AGAIN_S)

    async def _read(self, missed: bool) -> None:
        consumer = AIOKafkaConsumer(
            **aiokafka_options(self._kafka),
            enable_auto_commit=False,
            auto_offset_reset="latest",
            isolation_level="read_committed",
            fetch_max_wait_ms=100,
        )
        try:
            await consumer.start()
            tps = await self._partitions()
            consumer.assign(tps)
            ends = await consumer.end_offsets(tps)
            for tp in tps:
                consumer.seek(tp, ends[tp])
            self._well(missed)
            await self._follow(consumer, tps)
        finally:
            await stop(consumer, 1.0)

    async def _partitions(self) -> list[TopicPartition]:
        # A consumer without a subscription knows of no topic (aiokafka 0.14).
        name = self._kafka.scores
        admin = AIOKafkaAdminClient(**aiokafka_options(self._kafka))
        try:
            await admin.start()
            found = (await admin.describe_topics([name]))[0]
        finally:
            await admin.close()
        if not found["partitions"]:
            raise TopicError(
                f"topic {name} does not exist: run `livevalue topics --apply`, or set "
                "LIVEVALUE_KAFKA__SCORES"
            )
        return [
            TopicPartition(name, p) for p in sorted(p["partition"] for p in found["partitions"])
        ]

    async def _follow(self, consumer: AIOKafkaConsumer, tps: list[TopicPartition]) -> None:
        loop = asyncio.get_running_loop()
        asked = loop.time()
        while True:
            pages = await consumer.getmany(timeout_ms=_POLL_MS, max_records=_PAGE)
            for page in pages.values():
                for record in page:
                    self._send(record)
            if pages:
                asked = loop.time()
                self._well(missed=False)
                await asyncio.sleep(0)  # a full topic must not keep the loop from its clients
                await self._room()
            elif loop.time() - asked > _LOOK_S:
                # A consumer waits for its broker without a word, and keeps its positions.
                try:
                    await asyncio.wait_for(consumer.end_offsets(tps), _ANSWER_S)
                except (KafkaError, OSError, TimeoutError) as error:
                    self._away(self._silent(error))
                else:
                    self._well(missed=False)
                asked = loop.time()

    async def _room(self) -> None:
        """Wait a little until all who keep up have room for the next page."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE_S
        while slow := [feed for feed in self._feeds if feed.crowded and not feed.behind]:
            if loop.time() > until:
                for feed in slow:
                    feed.behind = True
                return
            await asyncio.sleep(0.01)

    def _send(self, record: Any) -> None:
        if not self._feeds or record.key is None:
            return
        where = f"{record.partition}-{record.offset}"
        if record.value is None:
            gone = {"user_id": record.key.decode(errors="replace"), "erased": True}
            text = message("erased", json.dumps(gone).encode(), where)
        else:
            text = message("update", record.value, where)
        for feed in self._feeds:
            if feed.key is None or feed.key == record.key:
                feed.put(text)

    def _tell(self, event: str, data: dict[str, object]) -> None:
        for feed in self._feeds:
            feed.put(message(event, json.dumps(data).encode()))

    def _away(self, why: str) -> None:
        if not self.trouble:
            self._tell("away", {"message": why})
        self.trouble = why

    def _well(self, missed: bool) -> None:
        if self.trouble:
            self.trouble = ""
            self._tell("back", {"missed": missed})

    def _silent(self, error: Exception) -> str:
        return (
            f"no broker answers at {self._kafka.bootstrap} ({type(error).__name__}): start it, or "
            "check LIVEVALUE_KAFKA__BOOTSTRAP and __SECURITY"
        )
