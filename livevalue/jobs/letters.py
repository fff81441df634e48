"""dlq and erase: the dead-letter topic read and replayed; users forgotten on every source."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition  # type: ignore[import-untyped]
from kafka.consumer.fetcher import ConsumerRecord  # type: ignore[import-untyped]
from kafka.errors import MessageSizeTooLargeError  # type: ignore[import-untyped]

from featurestore.partitioner import partition
from livevalue.output import Refused
from streams import broker, topics
from streams.deadletter import ORIGIN, RAW, TIMESTAMP, origin
from streams.settings import KafkaSettings, Settings

_PREFIX = "__connect.errors."
_IDLE_MS = 500  # a poll; the end offsets say when the topic is read
_SEND_S = 30.0
_UNDER_WAY = 500  # records sent and not yet acknowledged
_READ_S = 60.0  # without a single record


@dataclass(frozen=True, slots=True)
class Dead:
    """One dead letter: where it lay, why it was rejected, and its raw bytes."""

    at: str  # partition:offset in the dead-letter topic
    topic: str
    partition: int
    offset: int
    stage: str
    reason: str
    message: str
    timestamp: int  # of the letter
    written: int  # timestamp of the original record, the letter's where that does not say
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]  # of the original record
    whole: bool  # neither cut nor gone from the log
    origin: str  # partition:offset where it lay first, before it was sent again

    @property
    def identity(self) -> bytes:
        """Equal for all letters of one record that was sent again and again."""
        said = [self.topic.encode(), self.origin.encode(), self.key, self.value]
        whole = b"".join(b"-" if x is None else b"%d:%b" % (len(x), x) for x in said)
        return blake2b(whole, digest_size=16).digest()

    def as_json(self, *, raw: bool = False) -> dict[str, Any]:
        """For `--json`; bytes that are no text are written with replacement characters."""
        shown = {
            "at": self.at,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "origin": self.origin,
            "stage": self.stage,
            "reason": self.reason,
            "message": self.message,
            "timestamp": self.timestamp,
            "key": _text(self.key),
        }
        if raw:
            shown["value"] = _text(self.value)
            shown["value_hex"] = None if self.value is None else self.value.hex()
            shown["headers"] = [[name, _text(value)] for name, value in self.headers]
        return shown


def letters(settings: Settings) -> Iterator[Dead]:
    """Every dead letter that the topic holds now, partition by partition."""
    kafka = settings.kafka
    broker.reach(kafka)
    with broker.translated(kafka):
        consumer = KafkaConsumer(
            **broker.connection(kafka),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        try:
            known = consumer.partitions_for_topic(kafka.dlq)
            if not known:
                topics.refuse_hidden(kafka, kafka.dlq)
                raise Refused(f"there is no topic {kafka.dlq}: `livevalue topics --apply`")
            tps = [TopicPartition(kafka.dlq, p) for p in sorted(known)]
            consumer.assign(tps)
            ends = consumer.end_offsets(tps)
            consumer.seek_to_beginning(*tps)
            until = time.monotonic() + _READ_S
            while any(consumer.position(tp) < ends[tp] for tp in tps):
                if time.monotonic() > until:
                    raise Refused(
                        f"{kafka.dlq} gives nothing for {_READ_S:.0f} s: is the broker up?"
                    )
                for tp, records in consumer.poll(_IDLE_MS).items():
                    for record in records:
                        if record.offset < ends[tp]:  # not those that came meanwhile
                            yield _dead(record)
                    until = time.monotonic() + _READ_S
        finally:
            consumer.close()


def replay_letters(settings: Settings, reason: str | None) -> dict[str, Any]:
    """Send dead letters to their topics again, raw; each once, however often it became a letter.

    Idempotent: the fold drops what it has applied already (same source, type and event id; of an
    event without an id, by where it lay first), and what is rejected again becomes a dead letter
    again.
    """
    kafka = settings.kafka
    sent: list[Dead] = []
    seen: set[bytes] = set()
    done: Counter[str] = Counter()
    waiting: deque[tuple[Dead, Any]] = deque()

    def settle(rest: int) -> None:
        """Wait until at most `rest` records are under way."""
        while len(waiting) > rest:
            dead, future = waiting.popleft()
            try:
                future.get(_SEND_S)
            except MessageSizeTooLargeError:  # the topic's limit is lower than it was
                done["skipped"] += 1
            else:
                sent.append(dead)

    broker.reach(kafka)
    with broker.translated(kafka):
        producer = KafkaProducer(
            **broker.connection(kafka),
            acks="all",
            max_request_size=8 * kafka.max_record_bytes,
            max_block_ms=int(_SEND_S * 1000),
        )
        try:
            # To the end as it is now: what is rejected again is not sent again.
            for dead in letters(settings):
                if reason is not None and dead.reason != reason:
                    continue
                # Neither key nor value: nothing that could ever count, and no client sends it.
                empty = dead.key is None and dead.value is None
                if not dead.whole or empty or dead.topic not in kafka.sources:
                    done["skipped"] += 1
                    continue
                if dead.identity in seen:
                    done["repeated"] += 1
                    continue
                seen.add(dead.identity)
                again = ORIGIN, dead.origin.encode()
                future = producer.send(
                    dead.topic,
                    key=dead.key,
                    value=dead.value,
                    headers=[*((n, v or b"") for n, v in dead.headers), again],
                    partition=_target(kafka, dead),
                    # An erasure forgets what came before it, not what came since.
                    timestamp_ms=dead.written if dead.value is None else None,
                )
                # Of a letter that waits for its answer no more than its name.
                waiting.append((replace(dead, value=None, headers=()), future))
                settle(_UNDER_WAY)
            settle(0)
        finally:
            producer.close()
    return {
        "records": [d.as_json() for d in sent],
        "sent": len(sent),
        "skipped": done["skipped"],
        "repeated": done["repeated"],
    }


def erase(settings: Settings, user: str) -> dict[str, Any]:
    """An erase record on every source, under one timestamp, so that all forget the same."""
    kafka = settings.kafka
    where = partition(user, kafka.partitions, kafka.partitioner)
    broker.reach(kafka)
    with broker.translated(kafka):
        producer = KafkaProducer(**broker.connection(kafka), acks="all")
        try:
            for topic in kafka.sources:
                producer.partitions_for(topic)
            # Only now: what others send while we connect comes before the erasure, by its
            # timestamp as by its place in the log.
            now_ms = int(time.time() * 1000)
            waiting = [
                producer.send(
                    topic, key=user.encode(), value=None, partition=where, timestamp_ms=now_ms
                )
                for topic in kafka.sources
            ]
            for future in waiting:
                future.get(_SEND_S)
        finally:
            producer.close()
    return {"done": True, "user_id": user, "topics": list(kafka.sources), "timestamp": now_ms}


def _target(kafka: KafkaSettings, dead: Dead) -> int:
    """Where a record belongs now: a misrouted one goes to its right partition."""
    if dead.key is None:
        return dead.partition
    try:
        return partition(dead.key.decode(), kafka.partitions, kafka.partitioner)
    except UnicodeDecodeError:
        return dead.partition


def _dead(record: ConsumerRecord) -> Dead:
    own = _own(record.headers)
    said = dict(record.headers[own:])

    def text(name: str) -> str:
        return (said.get(name) or b"").decode("utf-8", "replace")

    def number(name: str) -> int:
        # Letters of others may lie in the topic, too, and say anything.
        digits = text(name)
        return int(digits) if digits.isdecimal() and len(digits) < 20 else -1

    place, offset = number(_PREFIX + "partition"), number(_PREFIX + "offset")
    written = number(TIMESTAMP)  # letters of before 2026-11-26 do not say it
    again = origin(record.headers)
    return Dead(
        f"{record.partition}:{record.offset}",
        text(_PREFIX + "topic"),
        place,
        offset,
        text(_PREFIX + "stage"),
        text(_PREFIX + "exception.class.name").removeprefix("livevalue."),
        text(_PREFIX + "exception.message"),
        record.timestamp,
        written if written >= 0 else record.timestamp,
        record.key,
        record.value,
        tuple((n, v) for n, v in record.headers[:own] if n != ORIGIN),
        said.get(RAW, b"whole") == b"whole",
        again.decode() or f"{place}:{offset}",
    )


def _own(headers: Sequence[tuple[str, bytes]]) -> int:
    """How many headers are the record's own: ours stand behind them, whatever it said itself."""
    ours = [at for at, (name, _) in enumerate(headers) if name == _PREFIX + "topic"]
    return ours[-1] if ours else len(headers)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")
