"""Law 4 with edges and words folded, and a generation that carries neighbours and directions."""

from __future__ import annotations

import numpy as np
import pytest

from featurestore.events import WORDS
from featurestore.settings import FeatureSettings
from scoring.generation import Generation, Manifest
from scoring.inputs import FEATURE_NAMES, SOCIAL_NAMES
from scoring.interests import INTEREST_NAMES, Directions
from scoring.social import NEAR_NAMES, Table
from scoring.training.columns import Columns
from scoring.zoo import graph
from scoring.zoo.two_part import OUTPUTS
from streams.codec import Codec
from streams.settings import Settings
from tests.featurestore.logs import assert_same_side
from tests.parity.nasty import laid, nasty
from tests.parity.playing import Order, Played, all_differences, by_clock, cuts, settings

NAMES = (*FEATURE_NAMES, *SOCIAL_NAMES, *INTEREST_NAMES, *NEAR_NAMES)
DAY_S = 86_400


def with_edges(partitions: int) -> Settings:
    return settings(False, partitions).model_copy(
        update={"features": FeatureSettings(social=True, interests=True)}
    )


def generation() -> Generation:
    """Random weights on every column, so that one folded or joined otherwise shows."""
    r, width = np.random.default_rng(0), len(NAMES)
    arrays = {
        "scale": np.ones(width, np.float32),
        "mean": np.zeros(width, np.float32),
        "sd": np.ones(width, np.float32),
        "low": np.full(width, -4, np.float32),
        "high": np.full(width, 4, np.float32),
        "weights": r.normal(0, 0.05, (width, 3 * OUTPUTS)).astype(np.float32),
        "bias": np.zeros(3 * OUTPUTS, np.float32),
        "sigma": np.ones(3, np.float32),
        "cap": np.full(3, 1e6, np.float32),
    }
    users = [f"user-{n}" for n in range(0, 60, 2)]
    near = r.random((len(users), len(NEAR_NAMES))).astype(np.float32)
    # Made before the log began: who is erased in it has no neighbours from then on.
    table = Table.of(users, near, 0)
    manifest = Manifest(family="graph", horizons_s=(7 * DAY_S, 30 * DAY_S, 90 * DAY_S))
    directions = Directions.of(np.eye(WORDS, dtype=np.float32))
    return graph.generation(
        manifest, Columns(NAMES, directions, table), np.ones(width, bool), arrays
    )


@pytest.mark.parametrize(("partitions", "batch"), [(1, 40), (3, 4096)])
async def test_interleavings_batches_and_restarts_change_no_value(
    partitions: int, batch: int
) -> None:
    shape, made = with_edges(partitions), generation()
    log = laid(nasty(500, seed=partitions), shape.kafka)
    first = Played(shape, made, twins={})
    await first.play(log, by_clock(log, Codec(shape), 17))
    digest, documents = await first.digest(), await first.documents()
    assert len(documents) > 50
    assert first.twins
    edges = words = 0
    for p, twin in first.twins.items():
        states = await first.states(p)
        for u, name in enumerate(states.users):
            assert_same_side(states.head[u], twin.users[name].head(twin.settings), twin.settings)
        edges += int((states.head["edges"] > 0).sum())
        words += int(states.head["words"].any(axis=1).sum())
    assert min(edges, words) > 20
    orders: tuple[Order, ...] = ("random", "ahead", "ahead-reversed")
    for seed, order in enumerate(orders):
        other = Played(shape, made)
        await other.play(log, cuts(log, order, batch, seed), restart_every=5)
        assert await other.digest() == digest, order
        assert not all_differences(await other.documents(), documents), order
