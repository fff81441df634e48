"""From send to `scores`, as a read-committed subscriber sees it, at a steady rate.

Sender and subscriber are one process with one clock. The time of an event is that of its call of
`send` (linger 0); a document stands for the event that its cause names. Events of one user that
fall into one batch give one document, and all but the last of them are not counted: at this rate
and with users drawn evenly they are few, and their share is reported.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]

from benchmarks import load
from benchmarks.bench import PARTITIONS, Bench, Process, waited_s
from featurestore.partitioner import partition
from streams.connection import aiokafka_options

_SEED = 3
_WARM_S = 3.0
_AFTER_S = 3.0  # for the last documents


def measure(bench: Bench, worker: Process, users: int, rate: int, seconds: float) -> None:
    """Quantiles at `rate` events a second over `seconds`, with the worker caught up."""
    cpu, waited = worker.cpu_s(), waited_s(worker.pid)
    sent, seen = asyncio.run(_play(bench, users, rate, seconds + _WARM_S))
    spent, waited = worker.cpu_s() - cpu, waited_s(worker.pid) - waited
    began = min(sent.values()) + _WARM_S
    chosen = [event for event, at in sent.items() if at >= began]
    late = np.array([seen[event] - sent[event] for event in chosen if event in seen]) * 1e3
    if len(late) < 0.5 * len(chosen):
        raise RuntimeError(f"{len(late)} documents for {len(chosen)} events: the worker is behind")
    how = (
        f"{rate:,} events/s for {seconds:.0f} s, send to a read-committed subscriber of scores; "
        f"{len(late):,} of {len(chosen):,} events are the cause of a document"
    )
    for share, name in ((50, "p50"), (99, "p99")):
        bench.add(f"latency.{name}_ms", float(np.percentile(late, share)), "ms", how)
    bench.add("latency.covered", len(late) / len(chosen), "share", f"events with a document; {how}")
    bench.add("latency.worker_cores", spent / (seconds + _WARM_S + _AFTER_S), "cores",
              f"CPU time of the worker / clock time; {how}")  # fmt: skip
    bench.add("latency.starved", waited / max(waited + spent, 1e-9), "share",
              "of the time that the worker's threads were ready, they waited for a core: how "
              f"far the latencies are the machine's own; {how}")  # fmt: skip


async def _play(
    bench: Bench, users: int, rate: int, seconds: float
) -> tuple[dict[str, float], dict[str, float]]:
    """When each event was sent, and when a document came that names it, by event id."""
    options = aiokafka_options(bench.settings.kafka)
    scores = bench.settings.kafka.scores
    consumer = AIOKafkaConsumer(
        **options, isolation_level="read_committed", enable_auto_commit=False, fetch_max_wait_ms=10
    )
    producer = AIOKafkaProducer(**options, linger_ms=0)
    await consumer.start()
    await producer.start()
    consumer.assign([TopicPartition(scores, p) for p in range(PARTITIONS)])
    await consumer.seek_to_end()
    sent: dict[str, float] = {}
    seen: dict[str, float] = {}

    async def listen() -> None:
        async for record in consumer:
            if record.value:
                event = json.loads(record.value)["cause"]["event_id"]
                seen.setdefault(event, time.perf_counter())

    listener = asyncio.create_task(listen())
    try:
        await _send(bench, producer, users, rate, seconds, sent)
        await asyncio.sleep(_AFTER_S)
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
        await producer.stop()
        await consumer.stop()
    return sent, seen


async def _send(
    bench: Bench, producer: Any, users: int, rate: int, seconds: float, sent: dict[str, float]
) -> None:
    kafka = bench.settings.kafka
    count = int(rate * seconds)
    rows = list(load.events(count, users, int(time.time() * 1000), 1000 / rate, _SEED))
    began = time.perf_counter()
    for number, (kind, user, body) in enumerate(rows):
        ahead = number / rate - (time.perf_counter() - began)
        if ahead > 0:
            await asyncio.sleep(ahead)
        sent[load.event_id(_SEED, number)] = time.perf_counter()
        await producer.send(
            load.topic_of(bench.settings, kind),
            body,
            key=user.encode(),
            partition=partition(user, kafka.partitions, kafka.partitioner),
        )
    await producer.flush()
