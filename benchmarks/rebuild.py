"""Backfill: the whole log into a store aside, partitions in parallel, publishing nothing."""

from __future__ import annotations

import asyncio
import os
import time

from benchmarks.bench import PARTITIONS, Bench
from scoring.generation import dump
from streams import topics
from streams.backfill import in_parallel
from streams.stores import Stores
from streams.topics import log_id


def measure(bench: Bench, jobs: int) -> None:
    """Events a second of `livevalue backfill kafka --store aside`, by the clock and by CPU time."""
    identity = log_id(bench.settings, topics.topic_ids(bench.settings))
    before, at = os.times(), time.monotonic()
    done = in_parallel(bench.settings, "aside", dump(bench.generation), identity, jobs)
    after, seconds = os.times(), time.monotonic() - at
    cpu = after.children_user - before.children_user
    cpu += after.children_system - before.children_system
    how = (
        f"{done.events:,} events of the log into an empty store aside, {jobs} processes, with "
        f"their start, {seconds:.1f} s"
    )
    bench.add("backfill.events_per_s", done.events / seconds, "events/s", f"by the clock; {how}")
    bench.add("backfill.cpu_us_per_event", 1e6 * cpu / done.events, "us",
              f"CPU time of the processes; {how}")  # fmt: skip
    asyncio.run(_drop(bench))


async def _drop(bench: Bench) -> None:
    stores = Stores(bench.settings)
    try:
        for partition in range(PARTITIONS):
            await stores.store("aside").drop(partition)
    finally:
        await stores.close()
