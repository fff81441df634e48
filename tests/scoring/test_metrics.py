import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.judging import metrics
from scoring.judging.bootstrap import paired_bootstrap
from scoring.judging.metrics import Gain, Values


def google_gini(actual: Values, by: Values) -> float:
    """cumulative_true and gini_from_gain of google/lifetime_value, without pandas."""
    along = actual[np.argsort(-by, kind="stable")]
    gain = np.cumsum(along) / along.sum()
    return float(2 * gain.sum() / len(gain) - 1)


def google_decile_mape(actual: Values, predicted: Values) -> float:
    """decile_stats of google/lifetime_value on distinct predictions: ten (low, high] buckets."""
    edges = np.quantile(predicted, np.arange(11) / 10)
    errors = []
    for i in range(10):
        low = predicted >= edges[0] if i == 0 else predicted > edges[i]
        rows = low & (predicted <= edges[i + 1])
        mean = actual[rows].mean()
        errors.append(abs(predicted[rows].mean() - mean) / mean)
    return float(np.mean(errors))


def sample(n: int = 997, seed: int = 0) -> tuple[Values, Values]:
    rng = np.random.default_rng(seed)
    actual = rng.lognormal(sigma=1.5, size=n) * (rng.random(n) < 0.4)
    return actual, actual * 0.3 + rng.lognormal(size=n)


def test_ngini_is_that_of_google_lifetime_value() -> None:
    actual, predicted = sample()
    theirs = google_gini(actual, predicted) / google_gini(actual, actual)
    assert metrics.ngini(actual, predicted) == pytest.approx(theirs, abs=1e-12)


def test_decile_mape_is_that_of_google_lifetime_value() -> None:
    actual, predicted = sample()
    assert metrics.dmape(actual, predicted) == pytest.approx(google_decile_mape(actual, predicted))


def test_tied_predictions_count_as_the_mean_over_all_their_orders() -> None:
    actual = np.array([4.0, 0.0, 1.0, 3.0])
    tied = np.array([1.0, 1.0, 1.0, 0.0])
    rng = np.random.default_rng(0)
    broken = [google_gini(actual, tied + rng.random(4) * 1e-9) for _ in range(4000)]
    assert Gain(actual, tied).gini() == pytest.approx(np.mean(broken), abs=0.01)


def test_drawing_a_row_twice_is_the_same_as_writing_it_twice() -> None:
    actual, predicted = sample(60)
    times = np.random.default_rng(1).integers(0, 4, 60)
    twice = np.repeat(np.arange(60), times)
    weighted, written = Gain(actual, predicted), Gain(actual[twice], predicted[twice])
    assert weighted.gini(times.astype(float)) == pytest.approx(written.gini())
    assert weighted.top(0.2, times.astype(float)) == pytest.approx(written.top(0.2))


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=40))
def test_auc_counts_pairs(rows: list[tuple[int, bool]]) -> None:
    score = np.array([s for s, _ in rows], np.float64)
    active = np.array([a for _, a in rows])
    on, off = score[active], score[~active]
    if not len(on) or not len(off):
        assert np.isnan(metrics.auc(active, score))
        return
    pairs = (on[:, None] > off).mean() + 0.5 * (on[:, None] == off).mean()
    assert metrics.auc(active, score) == pytest.approx(pairs)


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_nobody_spent_is_not_an_error(name: str) -> None:
    value = metrics.METRICS[name](np.zeros(20), np.linspace(0, 1, 20))
    assert np.isnan(value) or value >= 0


def test_bootstrap_tells_a_better_model_and_not_two_equal_ones() -> None:
    actual, good = sample(800)
    noise = np.random.default_rng(3).random(800)
    users = np.arange(800)
    better = paired_bootstrap("ngini", actual, good, noise, users, draws=100)
    assert better.low > 0
    assert better.low < better.delta < better.high
    assert paired_bootstrap("mae", actual, good, good, users, draws=20) == (0, 0, 0)


def test_bootstrap_interval_covers_the_true_difference_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        actual = rng.normal(10, 1, 120)
        a, b = actual + rng.normal(0, 2, 120), actual + rng.normal(0, 1, 120)
        truth = (2 - 1) * np.sqrt(2 / np.pi)
        found = paired_bootstrap("mae", actual, a, b, np.arange(120), draws=100, seed=seed)
        held += found.low <= truth <= found.high
    assert 50 <= held <= 60


def test_windows_of_one_user_are_drawn_together() -> None:
    actual, predicted = sample(150)
    other = np.random.default_rng(5).random(150)
    once = paired_bootstrap("ngini", actual, predicted, other, np.arange(150), draws=150)
    copies = paired_bootstrap(
        "ngini",
        np.tile(actual, 4),
        np.tile(predicted, 4),
        np.tile(other, 4),
        np.tile(np.arange(150), 4),
        np.repeat(np.arange(4), 150),
        draws=150,
    )
    # four copies of the evidence are no more evidence
    assert copies.high - copies.low == pytest.approx(once.high - once.low, rel=1e-6)
