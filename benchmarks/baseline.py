"""The naive worker on the same stack and the same kind of events, for the ratio."""

from __future__ import annotations

import time

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from kafka.admin import NewTopic  # type: ignore[import-untyped]

from benchmarks import load, throughput
from benchmarks.bench import GENERATION, PARTITIONS, Bench, Process
from streams.broker import connection

TOPIC = "bench.naive"
_START = 300  # events before the measurement


def measure(bench: Bench, users: int, seconds: float) -> None:
    """CPU time an event of benchmarks.naive, over `seconds` of a backlog."""
    options = connection(bench.settings.kafka)
    admin = KafkaAdminClient(**options)
    admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in (TOPIC, f"{TOPIC}.scores")])
    admin.close()
    count = int(4000 * seconds)
    step_ms = throughput.USER_GAP_MS / users
    start_ms = int(time.time() * 1000 - count * step_ms)
    load.produce(bench.settings, load.events(count, users, start_ms, step_ms, seed=2), TOPIC)
    consumer = KafkaConsumer(**options)
    outputs = [TopicPartition(f"{TOPIC}.scores", p) for p in range(PARTITIONS)]

    def scored() -> int:
        return sum(consumer.end_offsets(outputs).values())

    generation = str(GENERATION) if (GENERATION / "manifest.json").exists() else ""
    worker = Process(
        bench,
        "naive",
        ["-m", "faust", "-A", "benchmarks.naive", "worker", "-l", "warn", "--without-web"],
        NAIVE_TOPIC=TOPIC,
        NAIVE_GENERATION=generation,
        NAIVE_DATA=str(bench.folder / "naive"),
    )
    try:
        until = time.monotonic() + 60
        while scored() < _START:
            if time.monotonic() > until:
                raise RuntimeError(f"the naive worker scores nothing: see {worker.log}")
            worker.cpu_s()
            time.sleep(0.2)
        began, first, at = worker.cpu_s(), scored(), time.monotonic()
        time.sleep(seconds)
        spent, done = worker.cpu_s() - began, scored() - first
        passed = time.monotonic() - at
    finally:
        worker.stop()
        consumer.close()
    how = (
        f"benchmarks/naive.py on the same stack, {users:,} users evenly, {done:,} events in "
        f"{passed:.0f} s"
    )
    bench.add("naive.cpu_us_per_event", 1e6 * spent / done, "us", f"CPU time; {how}")
    bench.add("naive.events_per_s_per_core", done / spent, "events/s", f"1 / the above; {how}")
    bench.add("naive.events_per_s", done / passed, "events/s", f"by the clock; {how}")
