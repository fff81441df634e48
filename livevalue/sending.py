"""Sends events: one from the command line, or a whole log in time order.

Keyed by user and put into the partition that the configured partitioner names among those
that the topic has, as the worker expects them. One event is checked against the contract first;
what is wrong with it is said.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from kafka import KafkaProducer  # type: ignore[import-untyped]
from pydantic import ValidationError

from featurestore import times
from featurestore.errors import FeatureStoreError
from featurestore.events import Browse, Interaction, Purchase
from featurestore.partitioner import partition
from livevalue.output import Refused
from streams import broker, topics
from streams.codec import Codec
from streams.delivery import Simple
from streams.settings import KafkaSettings, Settings

_MODELS: dict[str, type[Browse | Purchase | Interaction]] = {
    "browse": Browse,
    "purchase": Purchase,
    "interaction": Interaction,
}
_SEND_S = 30.0
# Records on their way at once; more would only wait in memory.
_IN_FLIGHT = 10_000


@dataclass(frozen=True, slots=True)
class Sent:
    """Where an event went."""

    topic: str
    partition: int
    offset: int


def topic_of(kafka: KafkaSettings, kind: str) -> str:
    """The source that takes events of this type.

    >>> topic_of(KafkaSettings(), "browse"), topic_of(KafkaSettings(mixed="events"), "browse")
    ('events.browse', 'events')
    """
    return kafka.mixed or str(getattr(kafka, kind))


def event(kind: str, user: str, fields: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """An event as it is sent, checked; id and time are filled in where they are not given.

    >>> sent = event("purchase", "ada", {"amount": "49.90", "event_id": "o-1"}, 0)
    >>> sent["event_time"], sent["amount"]
    ('1970-01-01T00:00:00Z', '49.90')
    """
    made: dict[str, Any] = {
        "type": kind,
        "event_id": uuid.uuid4().hex,
        "user_id": user,
        "event_time": times.text(now_ms),
    }
    made |= {name: value for name, value in fields.items() if value is not None}
    try:
        _MODELS[kind].model_validate(made)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise Refused(f"this {kind} has no {where}: give --{where}") from error
        said = first["msg"].removeprefix("Value error, ")
        raise Refused(f"this {kind} is not accepted: {where}: {said}") from error
    return made


def now_ms(settings: Settings) -> int:
    """Now as the deployment counts it; the wall's time where there is none yet."""
    from livevalue.client import ValueClient

    try:
        with ValueClient(settings) as values:
            return values.now_ms()
    except FeatureStoreError:
        return time.time_ns() // 1_000_000


def send(settings: Settings, made: Mapping[str, Any]) -> Sent:
    """Send one event and wait until the broker has it."""
    kafka = settings.kafka
    counts = topics.partition_counts(kafka)
    topic, key = topic_of(kafka, made["type"]), made["user_id"].encode()
    number = partition(key, counts[topic], kafka.partitioner)
    value = orjson.dumps(made)
    _check(settings, topic, number, key, value)
    with broker.translated(kafka):
        producer = _producer(kafka)
        try:
            future = producer.send(topic, value, key=key, partition=number)
            written = future.get(timeout=_SEND_S)
        finally:
            producer.close(timeout=_SEND_S)
    return Sent(topic, written.partition, written.offset)


def _check(settings: Settings, topic: str, number: int, key: bytes, value: bytes) -> None:
    """Refused where a worker would reject what it holds: a currency without a rate, say."""
    source = settings.kafka.sources.index(topic)
    for found in Codec(settings).decode(source, number, [Simple(0, key, value)]).rejected:
        raise Refused(f"this event is not accepted: {found.reason}: {found.detail}")


def send_all(
    settings: Settings,
    records: Iterable[tuple[str, bytes, bytes, int]],
    rate: float | None = None,
    told: Callable[[int], None] | None = None,
) -> int:
    """Send (topic, key, value, log time in ms) in the order given; how many the broker has.

    A record keeps its log time as its timestamp, so that lateness and the cut-offs of training
    come out as they did when it arrived. At most `rate` a second; `told` is called with the
    number so far, about ten times a second.
    """
    kafka, sent = settings.kafka, 0
    failed: list[Exception] = []
    now_ms = time.time_ns() // 1_000_000
    counts = topics.partition_counts(kafka)
    with broker.translated(kafka):
        producer = _producer(kafka)
        try:
            began = said = time.monotonic()
            for topic, key, value, log_ms in records:
                future = producer.send(
                    topic,
                    value,
                    key=key,
                    partition=partition(key, counts[topic], kafka.partitioner),
                    # Brokers refuse what is stamped more than an hour ahead.
                    timestamp_ms=min(log_ms, now_ms),
                )
                future.add_errback(failed.append)
                sent += 1
                if failed:
                    break
                if sent % _IN_FLIGHT == 0:
                    producer.flush(timeout=_SEND_S)
                now = time.monotonic()
                if told and now - said > 0.1:
                    said = now
                    told(sent)
                if rate and (wait := began + sent / rate - now) > 0:
                    time.sleep(wait)
            producer.flush(timeout=_SEND_S)
        finally:
            producer.close(timeout=_SEND_S)
        if failed:
            raise failed[0]
    if told:
        told(sent)
    return sent


def _producer(kafka: KafkaSettings) -> KafkaProducer:
    return KafkaProducer(
        **broker.connection(kafka),
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        max_request_size=8 * kafka.max_record_bytes,
        max_block_ms=int(_SEND_S * 1000),
    )
