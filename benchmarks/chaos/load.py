"""The load: order-sensitive events of three topics, with all that a log may hold.

Among plain events come repeats (same bytes), conflicts (known id, other content), events out of
order within the allowed lateness, late ones (with and without money), some from the future, and
records that are no events at all. Which of two conflicting events counts, what is late and what
a session is depends on the order of the log, so a log folded in another order shows.

Browses and purchases come from an idempotent producer, interactions in transactions: one in ten
aborts with events and an erasure that must never count, and markers take offsets.

Every few thousand messages some users are erased, as `livevalue erase` does it: a record on every
source, all of one timestamp, which no record before it in its topic has passed. So the load comes
to rest first: with a lateness that is a second or two of the run, records in flight would else be
settled before an erasure that they outlive (docs/adr/0007). On purpose a new event stands before
the erasure that was made after it, and counts, and another stands behind it that was made before
it, and does not.

Same seed, same messages; what a producer must send again after an error adds repeats.
"""

from __future__ import annotations

import contextlib
import json
import queue
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from kafka.errors import KafkaError  # type: ignore[import-untyped]
from kafka.producer import KafkaProducer  # type: ignore[import-untyped]

from featurestore.partitioner import partition
from streams import broker
from streams.settings import KafkaSettings

START_MS = 1_700_000_000_000
LATENESS_MS = 900_000
STEP_MS = 1_000  # of event time from one message to the next
MAX_RECORD_BYTES = 8_192  # so that too large is cheap
_FAR_FUTURE_MS = 4_000_000_000_000  # beyond any record timestamp
_TRANSACTION_S = 0.2
_ABORTED = 0.1
_IN_FLIGHT = 2_000  # records that a producer may hold before the load waits for it
_ERASE_EVERY = 2_500  # messages
_ERASE_FIRST = 400
_ERASED = 8  # users at a time

INTERACTION = 2
_TYPES = ("browse", "purchase", "interaction")
_SHARES = (60, 20, 20)
_ACTIONS = ("cart_add", "wishlist", "like", "share")
# Share of each kind of message; the rest is plain.
MIX = {
    "repeat": 0.04,
    "conflict": 0.01,
    "unordered": 0.08,
    "late": 0.015,
    "future": 0.002,
    "bad": 0.02,
}


@dataclass(frozen=True, slots=True)
class Message:
    """One record to be sent."""

    source: int
    partition: int
    key: bytes | None
    value: bytes | None
    kind: str
    timestamp_ms: int | None = None  # None: when it is sent


@dataclass(frozen=True, slots=True)
class Erasure:
    """Some users are to be forgotten.

    Timestamps are offsets from the moment of the erasure.
    """

    before: tuple[Message, ...]  # stand before it and were made after it
    erases: tuple[Message, ...]
    after: tuple[Message, ...]  # stand behind it and were made before it
    kind: str = "erasure"


def messages(users: int, seed: int, kafka: KafkaSettings) -> Iterator[Message | Erasure]:
    """Endless.

    >>> settings = KafkaSettings(partitions=4)
    >>> first = [m for m, _ in zip(messages(9, 1, settings), range(50), strict=False)]
    >>> first == [m for m, _ in zip(messages(9, 1, settings), range(50), strict=False)]
    True
    """
    rng = random.Random(seed)
    recent: list[deque[tuple[dict[str, Any], Message]]] = [deque(maxlen=200) for _ in _TYPES]
    kinds, weights = list(MIX), list(MIX.values())
    plain = 1 - sum(weights)
    number = 0
    while True:
        number += 1
        if number % _ERASE_EVERY == _ERASE_FIRST:
            yield _erasure(rng, number, users, kafka)
            continue
        source = rng.choices(range(len(_TYPES)), _SHARES)[0]
        kind = rng.choices([*kinds, "plain"], [*weights, plain])[0]
        if kind in ("repeat", "conflict") and not recent[source]:
            kind = "plain"
        if kind == "repeat":
            _, known = rng.choice(recent[source])
            yield Message(source, known.partition, known.key, known.value, kind)
            continue
        event = _event(rng, number, users, source)
        if kind == "conflict":
            before, _ = rng.choice(recent[source])
            event = {**before, "event_time": before["event_time"] + rng.randrange(1, 5_000)}
        elif kind == "unordered":
            event["event_time"] -= rng.randrange(LATENESS_MS // 2)
        elif kind == "late":
            event["event_time"] -= LATENESS_MS + rng.randrange(200_000, 900_000)
        elif kind == "future":
            event["event_time"] = _FAR_FUTURE_MS
        elif kind == "bad":
            yield _bad(rng, event, source, kafka)
            continue
        user = event["user_id"]
        where = partition(user, kafka.partitions, kafka.partitioner)
        message = Message(source, where, user.encode(), json.dumps(event).encode(), kind)
        if kind in ("plain", "unordered"):
            recent[source].append((event, message))
        yield message


def _event(rng: random.Random, number: int, users: int, source: int) -> dict[str, Any]:
    """Number `number`; some users come far more often than others."""
    event: dict[str, Any] = {
        "event_id": f"e{number}",
        "user_id": f"u{int(users * rng.random() ** 1.5)}",
        "event_time": START_MS + number * STEP_MS + rng.randrange(-5_000, 5_000),
    }
    if source == 1:
        sign = "-" if rng.random() < 0.1 else ""
        event["amount"] = f"{sign}{rng.randrange(100, 9999) / 100:.2f}"
    elif source == INTERACTION:
        event["action"] = rng.choice(_ACTIONS)
    return event


def _erasure(rng: random.Random, number: int, users: int, kafka: KafkaSettings) -> Erasure:
    """Of users of whom some have hardly come yet, and some have come often."""
    before, erases, after = list[Message](), list[Message](), list[Message]()
    for n, chosen in enumerate(rng.sample(range(users), min(_ERASED, users))):
        key = f"u{chosen}".encode()
        where = partition(key.decode(), kafka.partitions, kafka.partitioner)

        def event(
            kind: str, shift_ms: int, n: int = n, key: bytes = key, where: int = where
        ) -> Message:
            source = rng.randrange(len(_TYPES))
            said = _event(rng, number, users, source)
            said |= {"event_id": f"{kind}{number}.{n}", "user_id": key.decode()}
            return Message(source, where, key, json.dumps(said).encode(), kind, shift_ms)

        if rng.random() < 0.5:
            before.append(event("ahead", 1))
        order = rng.sample(range(len(_TYPES)), len(_TYPES))
        erases += [Message(source, where, key, None, "erase", 0) for source in order]
        if rng.random() < 0.5:
            after.append(event("behind", -rng.randrange(2)))
    return Erasure(tuple(before), tuple(erases), tuple(after))


def _bad(rng: random.Random, event: dict[str, Any], source: int, kafka: KafkaSettings) -> Message:
    """A record that belongs among the dead letters."""
    user = event["user_id"]
    where = partition(user, kafka.partitions, kafka.partitioner)
    key: bytes | None = user.encode()
    value = json.dumps(event).encode()
    match rng.randrange(9):
        case 0:
            value = value[:-1]
        case 1:
            value = b"\xff\xfe" + value
        case 2:
            value = b"[1, 2]"
        case 3:
            del event["event_time"]
            value = json.dumps(event).encode()
        case 4:
            value = json.dumps({**event, "event_time": "yesterday"}).encode()
        case 5:
            key = b"somebody else"
        case 6:
            key = None
        case 7:
            value = json.dumps(
                {**event, "properties": {"x": "y" * kafka.max_record_bytes}}
            ).encode()
        case _:
            where = (where + 1) % kafka.partitions
    return Message(source, where, key, value, "bad")


class Feeder:
    """Sends at a rate from threads of its own, through whatever the broker does.

    enough(sent) says when to end; it is asked before each message.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        users: int,
        seed: int,
        rate: float,
        enough: Callable[[int], bool],
    ) -> None:
        self.sent: Counter[str] = Counter()
        self._kafka = kafka
        self._messages = messages(users, seed, kafka)
        self._rate = rate
        self._enough = enough
        self._rng = random.Random(seed + 1)
        self._halt = threading.Event()
        self._ended = threading.Event()
        self._again: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._interactions: queue.Queue[Message] = queue.Queue(_IN_FLIGHT)
        self._flying = 0
        self._handed = self._committed = 0  # interactions
        self._guard = threading.Lock()
        self._threads = [
            threading.Thread(target=target, daemon=True, name=name)
            for target, name in ((self._plain, "feed"), (self._transactions, "feed-transactions"))
        ]

    def start(self) -> None:
        """Begin to send."""
        for thread in self._threads:
            thread.start()

    def join(self, patience_s: float) -> None:
        """Wait until everything is sent and acknowledged."""
        until = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                raise TimeoutError(f"the load is not acknowledged within {patience_s:g} s")

    def stop(self) -> None:
        """Stop at once, whatever is left."""
        self._halt.set()
        for thread in self._threads:
            thread.join(30)

    # ---- browses and purchases

    def _plain(self) -> None:
        producer = self._producer(enable_idempotence=True, acks="all", linger_ms=5)
        began, sent = time.monotonic(), 0
        try:
            for message in self._messages:
                if self._halt.is_set() or self._enough(sent):
                    break
                # After an outage the rate goes on from now: a burst would be another load.
                ahead = sent / self._rate - (time.monotonic() - began)
                if ahead > 0:
                    self._halt.wait(min(ahead, 0.05))
                elif ahead < -1:
                    began = time.monotonic() - sent / self._rate
                sent += 1
                self.sent[message.kind] += 1
                if isinstance(message, Erasure):
                    self._erase(producer, message)
                elif message.source == INTERACTION:
                    self._hand_over(message)
                else:
                    self._send(producer, message)
                self._send_again(producer)
            self._ended.set()
            self._land(producer)
        finally:
            self._ended.set()
            producer.close(timeout=2)

    def _erase(self, producer: KafkaProducer, erasure: Erasure) -> None:
        """Everything before it is in the log; then step by step, so that the order is as said."""
        while self._committed < self._handed and not self._halt.is_set():
            self._send_again(producer)
            self._halt.wait(0.02)
        self._land(producer)
        now_ms = int(time.time() * 1000)
        for step in (erasure.before, erasure.erases, erasure.after):
            for message in step:
                self.sent[message.kind] += 1
                at = now_ms + (message.timestamp_ms or 0)
                self._send(producer, replace(message, timestamp_ms=at))
            self._land(producer)
        self._halt.wait(0.002)  # what comes now was made after it

    def _land(self, producer: KafkaProducer) -> None:
        """Wait until all that was sent is acknowledged."""
        while (self._flying or not self._again.empty()) and not self._halt.is_set():
            self._send_again(producer)
            self._halt.wait(0.01)

    def _producer(self, **options: Any) -> KafkaProducer:
        return KafkaProducer(**broker.connection(self._kafka), **options)

    def _hand_over(self, message: Message) -> None:
        while not self._halt.is_set():
            with contextlib.suppress(queue.Full):
                self._interactions.put(message, timeout=0.2)
                self._handed += 1
                return

    def _send(self, producer: KafkaProducer, message: Message) -> None:
        while self._flying > _IN_FLIGHT and not self._halt.is_set():
            time.sleep(0.02)
        with self._guard:
            self._flying += 1
        try:
            future = producer.send(
                self._kafka.sources[message.source],
                value=message.value,
                key=message.key,
                partition=message.partition,
                timestamp_ms=message.timestamp_ms,
            )
        except KafkaError:
            self._failed(message)
            self._halt.wait(0.1)
            return
        future.add_callback(lambda _: self._landed())
        future.add_errback(lambda _: self._failed(message))

    def _landed(self) -> None:
        with self._guard:
            self._flying -= 1

    def _failed(self, message: Message) -> None:
        self.sent["sent again"] += 1
        self._again.put(message)
        self._landed()

    def _send_again(self, producer: KafkaProducer) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._send(producer, self._again.get_nowait())

    # ---- interactions

    def _transactions(self) -> None:
        producer: KafkaProducer | None = None
        batch: list[Message] = []
        while not self._halt.is_set():
            if not batch:
                batch = self._waiting()
                if not batch:
                    if self._ended.is_set():
                        break
                    continue
            try:
                if producer is None:
                    producer = self._producer(
                        transactional_id=f"{self._kafka.app}-upstream",
                        transaction_timeout_ms=10_000,
                        linger_ms=2,
                        request_timeout_ms=8_000,
                        delivery_timeout_ms=10_000,  # two minutes by default
                    )
                    producer.init_transactions()
                if self._rng.random() < _ABORTED:
                    self._abort_one(producer, batch[0])
                producer.begin_transaction()
                put = [self._put(producer, m.partition, m.key, m.value) for m in batch]
                producer.flush()
                for future in put:
                    # kafka-python 3.0.12 commits without a record that it has given up.
                    future.get(timeout=0)
                producer.commit_transaction()
                self._committed += len(batch)
                batch = []
            except Exception:  # noqa: BLE001 - whatever a producer says: another one, all again
                self.sent["transactions again"] += 1
                if producer is not None:
                    with contextlib.suppress(Exception):
                        producer.close(timeout=1)
                producer = None
                self._halt.wait(0.3)
        if producer is not None:
            producer.close(timeout=2)

    def _waiting(self) -> list[Message]:
        until, found = time.monotonic() + _TRANSACTION_S, list[Message]()
        while (left := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                found.append(self._interactions.get(timeout=left))
        return found

    def _abort_one(self, producer: KafkaProducer, like: Message) -> None:
        """A transaction that must never count."""
        producer.begin_transaction()
        for n in range(3):
            ghost = {
                "event_id": f"ghost{self.sent['aborted']}.{n}",
                "user_id": "u0",
                "event_time": START_MS,
                "action": "like",
            }
            self._put(producer, like.partition, b"u0", json.dumps(ghost).encode())
        self._put(producer, like.partition, like.key or b"u0", None)
        producer.flush()
        producer.abort_transaction()
        self.sent["aborted"] += 4

    def _put(
        self, producer: KafkaProducer, where: int, key: bytes | None, value: bytes | None
    ) -> Any:
        topic = self._kafka.sources[INTERACTION]
        return producer.send(topic, value=value, key=key, partition=where)
