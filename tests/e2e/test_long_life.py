"""Long life: what a worker holds does not grow, and one hot user costs no more than its caps.

Seconds are the machine's, so only ratios, counts and bytes are asked for. The long form of the soak
is `make soak`; docs/reliability.md has its figures.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from benchmarks.soak import Soaked, soak, soaked
from featurestore.columns import EVENT, STEPS, EventBatch
from featurestore.fold_settings import FoldSettings
from featurestore.partitioner import partition
from featurestore.state import SEEN, STATE
from featurestore.store import CommitOutcome, Watermark
from livevalue.embedded import Stack
from streams.pipeline import Positions
from tests.e2e.deployment import START_MS, Deployment, deployment_settings
from tests.parity.nasty import LATENESS_MS
from tests.parity.playing import Played, generation, settings

BESIDE_THE_STATE = 4096  # bytes of a row that are no state: carries, last document, headers


def most_bytes() -> int:
    """Of one user's row: every list of every source at its cap."""
    shape = settings(False, 1)
    rules = FoldSettings.of(shape.features, shape.kafka.sources)
    each = rules.tail_cap * EVENT.itemsize + (rules.ids_cap + rules.ring_cap) * SEEN.itemsize
    return 3 * each + 2 * STATE.itemsize + BESIDE_THE_STATE


class Hot:
    """One user's events through the pipeline, as columns: four browses, then an order."""

    def __init__(self, shuffle_ms: int, step_ms: int = 1000) -> None:
        self.made = Played(settings(False, 1), generation())
        self.sizes: list[int] = []  # bytes of the user's row after each batch
        self.took_s: list[float] = []  # of each batch
        self.applied = 0
        self._pipeline = self.made.pipeline()
        self._rng = np.random.default_rng(1)
        self._shuffle_ms, self._step_ms = shuffle_ms, step_ms
        self._at = 0
        self._token = ""
        self._before: Watermark | None = None

    async def feed(self, count: int, size: int) -> None:
        if not self._token:
            self._token = (await self.made.store.claim(0)).token
        for _ in range(count // size):
            batch = self._batch(size)
            self._at += size
            after = Positions((self._at, self._at, 0), ("a", "b", ""), "log", (False, False, True))
            began = time.process_time()
            done = await self._pipeline.process(0, self._token, self._before, after, batch, [])
            self.took_s.append(time.process_time() - began)
            assert done.outcome is CommitOutcome.OK
            self._before = done.watermark
            self.applied += done.counts["applied"]
            (row,) = (await self.made.store.load(0, ["hot"])).states
            assert row is not None
            self.sizes.append(len(row))

    def _batch(self, size: int) -> EventBatch:
        at = self._at + np.arange(size)
        events = np.zeros(size, EVENT)
        events["record_ms"] = START_MS + at * self._step_ms
        events["time_ms"] = events["record_ms"] - self._rng.integers(0, self._shuffle_ms, size)
        order = at % 5 == 0
        events["value_micro"] = np.where(order, 2_500_000, 0)
        events["kind"] = events["source"] = order
        events["flags"] = np.where(order, STEPS, 0)
        events["id_hi"] = self._rng.integers(0, 1 << 62, size)
        events["id_lo"] = at
        return EventBatch(
            ["hot"],
            np.zeros(size, np.int32),
            events,
            at,
            events["record_ms"].copy(),
            [],
            [None] * size,
        )


async def test_a_user_of_a_million_events_costs_no_more_than_its_caps() -> None:
    hot = Hot(shuffle_ms=60_000)
    await hot.feed(1_000_000, 5000)
    assert hot.applied == 1_000_000
    assert max(hot.sizes) <= most_bytes()
    # At its caps after a twentieth: from there on no batch is larger or slower than another.
    full = len(hot.sizes) // 20
    assert max(hot.sizes) <= 1.05 * hot.sizes[full]
    quarter = len(hot.took_s) // 4
    early, late = hot.took_s[full : full + quarter], hot.took_s[-quarter:]
    assert median(late) < 1.5 * median(early)
    document = json.loads(await hot.made.store.document(0, "hot") or b"")
    assert document["history"]["orders"] == 200_000


async def test_ten_thousand_events_within_the_lateness_cost_bounded_bytes_and_time() -> None:
    hot = Hot(shuffle_ms=LATENESS_MS // 2, step_ms=1000)
    await hot.feed(10_000, 250)
    first = len(hot.took_s) // 4
    early = median(hot.took_s[:first])
    await hot.feed(10_000, 250)
    assert max(hot.sizes) <= most_bytes()
    # Twice the events in the window: what the caps keep is loaded, sorted and stored each time.
    assert median(hot.took_s[-first:]) < 6 * early


def _served(stack: Stack, prefix: str, **worker: Any) -> Any:
    url = stack.redis_url.rsplit("/", 1)[0] + "/14"
    return deployment_settings(stack.bootstrap, url, prefix, worker=worker)


def test_one_user_with_ten_thousand_events_in_the_window_keeps_up_through_kafka(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(2)
    shape = _served(stack, topic_prefix)
    with Deployment(shape, tmp_path) as deployment:
        deployment.start()
        for n in range(10_000):
            lag_ms = int(rng.integers(0, LATENESS_MS // 2))
            event = {"event_id": f"e{n}", "user_id": "hot", "event_time": START_MS + n - lag_ms}
            deployment.send(1, event | {"amount": "1.00"})
        deployment.flush()
        deployment.settle()
        p = partition("hot", shape.kafka.partitions, shape.kafka.partitioner)
        row: Any = deployment.redis.get(f"lv:{shape.store.name}:{{{p}}}:s:hot")
        document: Any = deployment.redis.get(f"lv:{{{p}}}:v:hot")
        assert len(row) <= most_bytes()
        # Beyond the caps: older than the oldest id that is remembered is parked, not guessed at.
        # How many these are depends on the batches, an exception to law 4 in docs/architecture.md.
        letters = deployment.read(shape.kafka.dlq)
        reasons = {dict(r.headers)["__connect.errors.exception.class.name"] for r in letters}
        assert reasons <= {b"livevalue.late"}
        assert json.loads(document)["history"]["orders"] + len(letters) == 10_000
        assert len(letters) < 2000


@pytest.fixture(scope="module")
def life(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Soaked:
    shape = soaked(_served(stack, "soak.", clock="wall"))
    with Deployment(shape, tmp_path_factory.mktemp("soak")) as deployment:
        return soak(deployment, seconds=180, rate=400, users=100)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_worker_under_load_does_not_grow(life: Soaked) -> None:
    assert life.events > 60_000
    assert life.settled_s >= 0, life.line()
    assert life.growth < 0.05, life.line()
    assert life.more_descriptors <= 3, life.line()


def test_growth_is_seen() -> None:
    def of(more: int) -> Soaked:
        flat = [100_000_000 + more * second for second in range(60)]
        return Soaked(rss=flat, descriptors=[20 + more // 1000] * 60, settled_s=0)

    assert of(0).well
    assert not of(200_000).well
    leaking = Soaked(rss=[1] * 60, descriptors=list(range(60)), settled_s=0)
    assert not leaking.well
    assert not Soaked(rss=[1] * 60, descriptors=[20] * 60).well
