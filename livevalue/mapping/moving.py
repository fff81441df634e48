"""Reads a vendor's stream and produces what it maps to; or, in a dry run, only counts.

At least once, and that is enough: positions of a Kafka source are committed in a consumer group
after the broker has every event of the batch, so a crash maps some messages again. The same
messages give the same ids, and the fold applies an id once.

An event keeps its message's Kafka timestamp, from a file its own time: so lateness and the cut-offs
of training come out as they did when it arrived. Parked messages go to the dead letters, raw,
stage MAP, one letter a message.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson
from kafka import KafkaConsumer, KafkaProducer, TopicPartition  # type: ignore[import-untyped]
from kafka.errors import CommitFailedError, IllegalGenerationError, UnknownMemberIdError  # type: ignore[import-untyped]

from featurestore.partitioner import partition
from featurestore.store import Letter
from livevalue.mapping.engine import Mapper, Outcome
from livevalue.mapping.report import Report
from livevalue.output import Refused
from livevalue.sending import topic_of
from streams import broker, logfiles, topics
from streams.emit import Parked
from streams.settings import KafkaSettings, Settings

KAFKA = "kafka:"
_POLL_MS = 500
_BATCH = 2_000  # messages between two flushes
_SEND_S = 60.0
_ALONE_S = 60.0  # without a partition of one's own; a member that died is out long before
_STAGE = "__connect.errors.stage"
_LETTER_RECORDS = 4  # a letter may be as long as this many of the largest records (topics.wanted)

Told = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Taken:
    """One message as it was read."""

    topic: str
    partition: int
    offset: int
    value: bytes | None
    key: bytes | None = None
    timestamp: int = -1  # ms; -1 where there is none
    headers: Sequence[tuple[str, bytes]] = field(default=())

    @property
    def place(self) -> str:
        """As a person finds it."""
        return f"{self.topic}/{self.partition}:{self.offset}"


class Outlet:
    """Produces mapped events by our rules, and dead letters; `flush` waits until they are there."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._counts = topics.partition_counts(kafka)
        self._failed: list[Exception] = []
        self._producer = KafkaProducer(
            **broker.connection(kafka),
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            max_request_size=8 * kafka.max_record_bytes,
            max_block_ms=int(_SEND_S * 1000),
        )
        if not self._producer.partitions_for(kafka.dlq):
            self.close()
            raise Refused(f"there is no topic {kafka.dlq}: `livevalue topics --apply`")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is not there yet."""
        self._producer.close(timeout=_SEND_S)

    def put(self, taken: Taken, outcomes: Sequence[Outcome], now_ms: int) -> None:
        """Send what became of one message."""
        kafka = self._kafka
        for outcome in outcomes:
            if outcome.event is None:
                continue
            topic = topic_of(kafka, outcome.event["type"])
            key = outcome.event["user_id"].encode()
            log_ms = taken.timestamp if taken.timestamp >= 0 else outcome.time_ms
            self._producer.send(
                topic,
                orjson.dumps(outcome.event),
                key=key,
                partition=partition(key, self._counts[topic], kafka.partitioner),
                # Brokers refuse what is stamped ahead of their clock, and before 1970.
                timestamp_ms=max(0, min(log_ms, now_ms)),
            ).add_errback(self._failed.append)
        parked = [outcome for outcome in outcomes if outcome.status == "parked"]
        if parked:
            self._park(taken, parked, len(outcomes))

    def _park(self, taken: Taken, parked: Sequence[Outcome], of: int) -> None:
        first = parked[0]
        verb = "is" if len(parked) == 1 else "are"
        more = f" ({len(parked)} of its {of} events {verb} parked)" if of > 1 else ""
        said = f"{first.name}: {first.detail}{more}" if first.name else first.detail
        letter = Parked(Letter(0, taken.offset, first.reason), said, taken)
        room = _LETTER_RECORDS * self._kafka.max_record_bytes
        key, value, headers = letter.render(taken.topic, taken.partition, room)
        headers = [(name, b"MAP" if name == _STAGE else text) for name, text in headers]
        self._producer.send(
            self._kafka.dlq, value, key=key, headers=headers, partition=0
        ).add_errback(self._failed.append)

    def flush(self) -> None:
        """Wait until the broker has everything; raises what it refused."""
        self._producer.flush(timeout=_SEND_S)
        if self._failed:
            raise self._failed[0]


def from_files(
    paths: Sequence[Path],
    settings: Settings,
    mapper: Mapper,
    *,
    dry_run: bool,
    limit: int | None,
    stopped: threading.Event,
    told: Told,
) -> Report:
    """Map JSONL files, one message a line, to their end."""
    report = Report()
    kafka = settings.kafka
    if dry_run:
        for batch in _batches(_lines(paths, kafka.max_record_bytes), limit):
            _take(batch, mapper, report, None)
            told(report.messages)
            if stopped.wait(0):
                break
        return report
    broker.reach(kafka)
    with broker.translated(kafka), Outlet(kafka) as outlet:
        for batch in _batches(_lines(paths, kafka.max_record_bytes), limit):
            _take(batch, mapper, report, outlet)
            told(report.messages)
            if stopped.wait(0):
                break
    return report


def from_kafka(
    topic: str,
    settings: Settings,
    mapper: Mapper,
    *,
    group: str,
    dry_run: bool,
    until_end: bool,
    limit: int | None,
    stopped: threading.Event,
    told: Told,
) -> Report:
    """Map a topic from the group's position on, until stopped or, if asked, its present end.

    A dry run reads from the beginning to the present end, in no group, and moves nothing.
    """
    kafka, report = settings.kafka, Report()
    if topic in (*kafka.sources, kafka.dlq, kafka.scores, kafka.published):
        raise Refused(f"{topic} is Livevalue's own topic: --source names the vendor's")
    broker.reach(kafka)
    with broker.translated(kafka):
        consumer = KafkaConsumer(
            **broker.connection(kafka),
            group_id=None if dry_run else group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_partition_fetch_bytes=4 << 20,
            max_poll_records=_BATCH,
            session_timeout_ms=int(kafka.session_timeout_s * 1000),
            heartbeat_interval_ms=int(kafka.heartbeat_s * 1000),
            # A batch is mapped and flushed between two polls; the broker may be slow.
            max_poll_interval_ms=600_000,
        )
        outlet: Outlet | None = None
        try:
            known = consumer.partitions_for_topic(topic)
            if not known:
                topics.refuse_hidden(kafka, topic)
                raise Refused(f"there is no topic {topic} at {kafka.bootstrap}: check --source")
            tps = [TopicPartition(topic, number) for number in sorted(known)]
            if dry_run:
                consumer.assign(tps)
                consumer.seek_to_beginning(*tps)
            else:
                outlet = Outlet(kafka)
                consumer.subscribe([topic])
            ends = consumer.end_offsets(tps) if dry_run or until_end else None
            _follow(consumer, ends, mapper, report, outlet, limit, stopped, told)
        finally:
            if outlet is not None:
                outlet.close()
            consumer.close()
    return report


def _follow(
    consumer: KafkaConsumer,
    ends: dict[TopicPartition, int] | None,
    mapper: Mapper,
    report: Report,
    outlet: Outlet | None,
    limit: int | None,
    stopped: threading.Event,
    told: Told,
) -> None:
    """Batches until stopped, the limit, or `ends`."""
    began = time.monotonic()
    while not stopped.wait(0):
        room = _BATCH if limit is None else min(_BATCH, limit - report.messages)
        if room <= 0:
            return
        polled = consumer.poll(_POLL_MS, max_records=room)
        batch = [_taken(record) for records in polled.values() for record in records]
        if batch:
            _take(batch, mapper, report, outlet)
            told(report.messages)
        mine = consumer.assignment()
        if outlet is not None and mine and batch:
            try:
                consumer.commit()
            except (CommitFailedError, IllegalGenerationError, UnknownMemberIdError):
                pass  # the group has moved on: whoever has the partition now maps these again
        if ends is None:
            continue
        if mine and all(consumer.position(tp) >= ends[tp] for tp in mine):
            return
        if not mine and time.monotonic() - began > _ALONE_S:
            raise Refused(
                "other members of this consumer group have all partitions: stop one of them, or "
                "map with another --group"
            )


def _take(batch: Sequence[Taken], mapper: Mapper, report: Report, outlet: Outlet | None) -> None:
    """Map a batch, count it, and wait until what came of it is in Kafka."""
    now_ms = time.time_ns() // 1_000_000
    for taken in batch:
        outcomes = mapper.map(taken.value, taken.timestamp if taken.timestamp >= 0 else None)
        report.add(taken.place, outcomes)
        if outlet is not None:
            outlet.put(taken, outcomes, now_ms)
    if outlet is not None:
        outlet.flush()


def _taken(record: Any) -> Taken:
    return Taken(
        record.topic,
        record.partition,
        record.offset,
        record.value,
        record.key,
        record.timestamp if record.timestamp is not None else -1,
        record.headers or (),
    )


def _lines(paths: Sequence[Path], limit: int) -> Iterator[Taken]:
    for path in paths:
        if logfiles.format_of(path) != "jsonl":
            raise Refused(f"{path}: --source reads JSON lines: name it .jsonl (then .gz or .zst)")
        if not path.is_file():
            raise Refused(f"there is no file {path}: --source names JSON lines, or kafka:TOPIC")
        for number, line in logfiles.lines(path, limit):
            yield Taken(path.name, 0, number, line)


def _batches(taken: Iterator[Taken], limit: int | None) -> Iterator[list[Taken]]:
    batch: list[Taken] = []
    for number, one in enumerate(taken):
        if limit is not None and number >= limit:
            break
        batch.append(one)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
