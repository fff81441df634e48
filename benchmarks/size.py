"""Bytes of a user in the store, by part, over a sample of users that the worker has written."""

from __future__ import annotations

import asyncio

import numpy as np

from benchmarks.bench import PARTITIONS, Bench
from featurestore.backends.redis import RedisStore
from featurestore.blob import HEADER
from featurestore.columns import BARE
from featurestore.state import PLAIN, SEEN, States
from scoring.scorer import Scorer
from streams.row import split

_SAMPLE = 250  # users of each partition


def measure(bench: Bench) -> None:
    """Mean bytes of each part."""
    parts = asyncio.run(_parts(bench))
    n = int(parts.pop("users"))
    how = f"mean of {n:,} users of the throughput run, read from the store"
    for name, size in parts.items():
        bench.add(f"bytes_per_user.{name}", size / n, "bytes", how)
    with bench.client() as client:
        used = int(client.info("memory")["used_memory"])
        users = sum(int(client.zcard(f"lv:{{{p}}}:top")) for p in range(PARTITIONS))
    bench.add("bytes_per_user.redis", used / users, "bytes",
              f"used_memory of Valkey / {users:,} users, everything in it")  # fmt: skip


async def _parts(bench: Bench) -> dict[str, float]:
    settings = bench.settings
    store = RedisStore(settings.store, name=settings.store.name)
    scorer = Scorer(bench.generation, settings.model, settings.features)
    carry = scorer.generation.model.carry_size * 4
    total = dict.fromkeys(
        ("users", "document", "state", "settled", "head", "tail", "ids", "ring", "header", "carry",
         "last_document"), 0.0,
    )  # fmt: skip
    try:
        for p in range(PARTITIONS):
            users = (await store.scan(p, "", _SAMPLE))[0]
            rows = [row for row in (await store.load(p, users)).states if row]
            pairs = [split(row) for row in rows]
            states = States.decode([str(n) for n in range(len(rows))], [s for s, _ in pairs])
            tails = states.has_tail()
            total["users"] += len(rows)
            total["state"] += sum(map(len, rows))
            total["settled"] += len(rows) * PLAIN
            total["head"] += int(tails.sum()) * PLAIN
            total["tail"] += len(states.tail.values) * BARE
            total["ids"] += len(states.ids.values) * SEEN.itemsize
            total["ring"] += len(states.ring.values) * SEEN.itemsize
            total["header"] += len(rows) * (HEADER.itemsize + 4)
            total["carry"] += (len(rows) + int(tails.sum())) * carry
            total["last_document"] += len(rows) * scorer.last_dtype.itemsize
            with bench.client() as client:
                found = client.mget([f"lv:{{{p}}}:v:{user}" for user in users])
            total["document"] += float(np.sum([len(one) for one in found if one]))
    finally:
        await store.close()
    return total
