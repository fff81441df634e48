"""Outliers: what is beyond the bounds is read as the bound, and counted by those very bounds."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is in the extra `train`")

from featurestore.settings import FeatureSettings  # noqa: E402
from scoring.generation import Generation, Manifest, prior  # noqa: E402
from scoring.inputs import of_rows  # noqa: E402
from scoring.outliers import BOUNDS, Outliers, bounds, lines  # noqa: E402
from scoring.settings import ModelSettings, TrainingSettings  # noqa: E402
from scoring.training import loop  # noqa: E402
from scoring.training.examples import Examples, build  # noqa: E402
from scoring.zoo import blend, gbm, graph, linear, polynomial  # noqa: E402
from tests.scoring.logs import DAY, shoppers  # noqa: E402

HORIZONS_S = (7 * 86_400, 30 * 86_400)


def _examples() -> Examples:
    log = shoppers()
    start = int(log[0][1].events["time_ms"].min())
    cutoffs = np.array([start + day * DAY for day in (60, 100, 140)], np.int64)
    return build(log, FeatureSettings(), ["events"], HORIZONS_S, cutoffs, start, 0)


ROWS = _examples()


def _net(family: str) -> Generation:
    how = TrainingSettings(family=family, epochs=2, width=4, rate=5e-3, users_per_batch=128)
    return loop.generation(loop.train(ROWS, how), ROWS)


MADE = {
    "linear": linear.train(ROWS),
    "polynomial": polynomial.train(ROWS),
    "graph": graph.train(ROWS),
    "gbm": gbm.train(ROWS),
    "mingru": _net("mingru"),
    "mlp": _net("mlp"),
}


@pytest.mark.parametrize("family", MADE)
def test_beyond_a_bound_nothing_moves_and_within_it_something_does(family: str) -> None:
    made = MADE[family]
    found = Outliers.of(made.manifest)
    assert found is not None and len(found.names) >= 4
    features = of_rows(made, ROWS)
    mean = features.mean(axis=0)

    def said(offset: float) -> np.ndarray:
        """Of the mean user, another column each time at its upper bound plus so many widths."""
        users = np.tile(mean, (len(found.at), 1))
        users[np.arange(len(found.at)), found.at] = found.high + offset * (found.high - found.low)
        carry = np.zeros((len(users), made.model.carry_size), np.float32)
        return made.model.predict(carry, users.astype(np.float32)[:, None]).p_active[:, 0, 0]

    np.testing.assert_allclose(said(0.5), said(3.0), rtol=1e-5)
    moved = np.abs(said(-0.3) / said(0.5) - 1) > 1e-4
    assert moved.any() if family == "gbm" else moved.mean() > 0.5  # trees leave columns alone


@pytest.mark.parametrize("family", MADE)
def test_values_are_counted_where_a_model_reads_a_bound_in_their_place(family: str) -> None:
    made = MADE[family]
    found = Outliers.of(made.manifest)
    assert found is not None
    features = of_rows(made, ROWS).copy()
    found.add(features)
    before = found.as_json()
    assert before["users"] == len(ROWS)
    # Few: a thousandth of the rows on each side of a column, or beyond 6 deviations.
    assert max(before["columns"].values(), default=0) <= len(ROWS) / 20
    at = made.manifest.features.index("orders")
    low, high = made.manifest.params[BOUNDS]["orders"]
    features[:3, at] = high + (high - low)
    features[3, at] = low - (high - low)
    again = Outliers.of(made.manifest)
    assert again is not None
    again.add(features[:2])
    again.add(features[2:4])
    assert again.as_json()["columns"]["orders"] == 4
    assert (again.users, again.beyond) == (4, 4)


def test_a_blend_counts_whom_any_of_its_members_bounds() -> None:
    start = prior(ModelSettings(horizons_days=(7, 30), headline="d30"))
    members = [MADE["linear"], MADE["gbm"], MADE["mlp"], start]

    def counted(made: Generation) -> dict[str, int]:
        found = Outliers.of(made.manifest)
        assert found is not None
        found.add(of_rows(made, ROWS) * np.float32(2))
        columns: dict[str, int] = found.as_json()["columns"]
        return columns

    each = [counted(made) for made in members[:3]]
    both = counted(blend.generation(members))
    assert len({len(one) for one in each}) > 1
    for name in {name for one in each for name in one}:
        assert both[name] >= max(one.get(name, 0) for one in each), name


def test_a_value_is_not_beyond_the_bound_that_was_rounded_from_it() -> None:
    ends = np.array([8.2027564, 8.2364998])  # narrow: six digits stand for 8.20276 and 8.2365
    params = bounds(["orders"], ends[:1], ends[1:])
    found = Outliers.of(
        Manifest(family="gbm", horizons_s=(1,), features=("orders",), params=params)
    )
    assert found is not None
    found.add(np.array([*ends, 8.2, 8.24], np.float32)[:, None])
    assert (found.users, found.beyond) == (4, 2)
    said = {"users": 1, "beyond": 1, "values": 1, "columns": {"orders": 1}}
    assert lines(said) == [
        "outliers: 1 value of 1 in 1 user, read as the bound of training: orders 1"
    ]


def test_what_nobody_taught_counts_none() -> None:
    assert Outliers.of(prior(ModelSettings()).manifest) is None
