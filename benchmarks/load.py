"""The load of the benchmarks: mixed events of about 185 bytes, users drawn evenly, a fixed seed."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]

from featurestore.partitioner import partition
from streams.connection import aiokafka_options
from streams.settings import Settings

ACTIONS = ("cart_add", "wishlist", "like", "play", "share")
# 60 % browse, 15 % purchase, 25 % interaction, in turn: events of one user still mix freely.
_KINDS = ("browse",) * 12 + ("purchase",) * 3 + ("interaction",) * 5


def event_id(seed: int, number: int) -> str:
    """Identity of the event `number` of a load."""
    return f"{seed:04d}-{number:014d}"


def events(
    count: int, users: int, start_ms: int, step_ms: float, seed: int
) -> Iterator[tuple[str, str, bytes]]:
    """(type, user id, JSON) of `count` events, one each `step_ms` of event time.

    >>> kind, user, body = next(events(1, 10, 0, 1.0, seed=1))
    >>> kind == json.loads(body)["type"], user == json.loads(body)["user_id"]
    (True, True)
    """
    rng = random.Random(seed)
    for number in range(count):
        kind = _KINDS[int(rng.random() * len(_KINDS))]
        user = f"user-{int(rng.random() * users):06d}"
        body: dict[str, object] = {
            "type": kind,
            "event_id": event_id(seed, number),
            "user_id": user,
            "event_time": int(start_ms + number * step_ms),
            "item_id": f"item-{int(rng.random() * 5000):010d}",
            "category": f"category-{int(rng.random() * 40):02d}",
        }
        if kind == "purchase":
            body |= {"amount": f"{rng.lognormvariate(3, 1):.2f}", "currency": "GBP"}
        elif kind == "interaction":
            body |= {"action": ACTIONS[int(rng.random() * len(ACTIONS))]}
        else:
            body |= {"page": "product", "dwell_ms": int(500 + rng.random() * 59_500)}
        yield kind, user, json.dumps(body, separators=(",", ":")).encode()


def topic_of(settings: Settings, kind: str) -> str:
    """The topic that takes events of this type."""
    return settings.kafka.mixed or str(getattr(settings.kafka, kind))


def produce(settings: Settings, rows: Iterable[tuple[str, str, bytes]], topic: str = "") -> int:
    """Write events to the input topics (or all to `topic`) in whole batches; -> bytes."""
    return asyncio.run(_produce(settings, rows, topic))


async def _produce(settings: Settings, rows: Iterable[tuple[str, str, bytes]], topic: str) -> int:
    kafka = settings.kafka
    producer = AIOKafkaProducer(
        **aiokafka_options(kafka), max_batch_size=256 << 10, request_timeout_ms=60_000
    )
    await producer.start()
    homes: dict[str, int] = {}
    open_batches: dict[tuple[str, int], Any] = {}
    sent: list[Any] = []
    size = 0

    async def ship(at: tuple[str, int]) -> None:
        sent.append(await producer.send_batch(open_batches.pop(at), at[0], partition=at[1]))

    try:
        for kind, user, body in rows:
            if user not in homes:
                homes[user] = partition(user, kafka.partitions, kafka.partitioner)
            at = topic or topic_of(settings, kind), homes[user]
            key = user.encode()
            if at not in open_batches:
                open_batches[at] = producer.create_batch()
            if open_batches[at].append(timestamp=None, key=key, value=body) is None:
                await ship(at)
                open_batches[at] = producer.create_batch()
                open_batches[at].append(timestamp=None, key=key, value=body)
            size += len(body)
        for at in list(open_batches):
            await ship(at)
        await asyncio.gather(*sent)
    finally:
        await producer.stop()
    return size
