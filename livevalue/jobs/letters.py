"""dlq and erase: the dead-letter topic read and replayed; users forgotten on every source."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition  # type: ignore[import-untyped]
from kafka.consumer.fetcher import ConsumerRecord  # type: ignore[import-untyped]

from featurestore.partitioner import partition
from livevalue.output import Refused
from streams import topics
from streams.settings import KafkaSettings, Settings

_PREFIX = "__connect.errors."
_RAW = "livevalue.raw"  # whole, truncated or gone; see streams.emit
_IDLE_MS = 500  # a poll; the end offsets say when the topic is read
_SEND_S = 30.0
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
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]  # of the original record
    whole: bool  # neither cut nor gone from the log

    def as_json(self, *, raw: bool = False) -> dict[str, Any]:
        """For `--json`; bytes that are no text are written with replacement characters."""
        shown = {
            "at": self.at,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
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
    """Every dead letter that the topic holds, partition by partition."""
    kafka = settings.kafka
    with topics.translated(kafka):
        consumer = KafkaConsumer(
            **topics.connection(kafka),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        try:
            known = consumer.partitions_for_topic(kafka.dlq)
            if not known:
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
                for records in consumer.poll(_IDLE_MS).values():
                    for record in records:
                        yield _dead(record)
                    until = time.monotonic() + _READ_S
        finally:
            consumer.close()


def replay_letters(settings: Settings, reason: str | None) -> dict[str, Any]:
    """Send dead letters to their topics again, raw; idempotent for events with an id.

    The fold drops what it has applied already (same source, type and event id), and what is
    rejected again becomes a dead letter again.
    """
    sent: list[Dead] = []
    waiting = []
    gone = 0
    found = [d for d in letters(settings) if reason is None or d.reason == reason]
    with topics.translated(settings.kafka):
        producer = KafkaProducer(**topics.connection(settings.kafka), acks="all")
        try:
            for dead in found:
                if not dead.whole or dead.topic not in settings.kafka.sources:
                    gone += 1
                    continue
                waiting.append(
                    producer.send(
                        dead.topic,
                        key=dead.key,
                        value=dead.value,
                        headers=list(dead.headers),
                        partition=_target(settings.kafka, dead),
                        # An erasure forgets what came before it, not what came since.
                        timestamp_ms=dead.timestamp if dead.value is None else None,
                    )
                )
                sent.append(dead)
            for future in waiting:
                future.get(_SEND_S)
        finally:
            producer.close()
    return {"records": [d.as_json() for d in sent], "sent": len(sent), "skipped": gone}


def erase(settings: Settings, user: str) -> dict[str, Any]:
    """An erase record on every source, under one timestamp, so that all forget the same."""
    kafka = settings.kafka
    now_ms = int(time.time() * 1000)
    where = partition(user, kafka.partitions, kafka.partitioner)
    with topics.translated(kafka):
        producer = KafkaProducer(**topics.connection(kafka), acks="all")
        try:
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
    said = {name: value for name, value in record.headers if name.startswith(_PREFIX)}

    def text(name: str) -> str:
        return (said.get(_PREFIX + name) or b"").decode("utf-8", "replace")

    return Dead(
        f"{record.partition}:{record.offset}",
        text("topic"),
        int(text("partition") or -1),
        int(text("offset") or -1),
        text("stage"),
        text("exception.class.name").removeprefix("livevalue."),
        text("exception.message"),
        record.timestamp,
        record.key,
        record.value,
        tuple((n, v) for n, v in record.headers if not n.startswith(_PREFIX) and n != _RAW),
        dict(record.headers).get(_RAW, b"whole") == b"whole",
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")
