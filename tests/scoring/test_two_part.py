import numpy as np
import pytest

from scoring.judging import metrics
from scoring.zoo import two_part
from scoring.zoo.seen import moved_by
from scoring.zoo.two_part import Increment, Labels, Scaling
from tests.scoring.test_linear import ROWS


def test_logistic_regression_finds_the_weights_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(40_000, 3)).astype(np.float32)
    truth = np.array([1.0, -0.5, 0.0])
    y = rng.random(len(z)) < 1 / (1 + np.exp(-(z @ truth - 1)))
    weights, bias = two_part.logistic(z, y, 1.0)
    assert weights == pytest.approx(truth, abs=0.06)
    assert bias == pytest.approx(-1, abs=0.06)


def test_logistic_regression_finds_the_minimum_on_skewed_and_collinear_columns() -> None:
    rng = np.random.default_rng(0)
    rare = (rng.random((2_000, 1)) < 0.01) * rng.lognormal(0, 1, (2_000, 1))
    z = rare * rng.lognormal(0, 0.01, (2_000, 6))
    z = ((z - z.mean(0)) / z.std(0)).astype(np.float32)
    y = rng.random(len(z)) < 1 / (1 + np.exp(5 - 6 * rare[:, 0]))
    weights, bias = two_part.logistic(z, y, 1.0)
    x = z.astype(np.float64)
    error = 1 / (1 + np.exp(-(x @ weights + bias))) - y
    assert np.abs(error @ x + weights).max() < 0.1  # the slope of the penalised loss; was 126
    assert abs(error.sum()) < 0.1
    flat = two_part.logistic_loss(x, y, 1.0, np.zeros(6), two_part.base_rate(y))
    assert two_part.logistic_loss(x, y, 1.0, weights, bias) < flat
    assert metrics.auc(y, x @ weights + bias) > 0.6  # was .30


def test_level_regression_finds_the_weights_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(20_000, 2)).astype(np.float32)
    value = np.exp(z @ np.array([0.5, -0.2]) + 2 + rng.normal(0, 0.7, len(z)))
    weights, bias, sigma = two_part.level(z, value, 1.0)
    assert weights == pytest.approx([0.5, -0.2], abs=0.02)
    assert bias == pytest.approx(2, abs=0.02)
    assert sigma == pytest.approx(0.7, abs=0.02)


def test_scaling_is_bounded_far_outside_what_training_saw() -> None:
    x = np.random.default_rng(0).lognormal(0, 1, (500, 3)).astype(np.float32)
    z = Scaling.of(x)(np.array([[1e30, -1e30, 0.0]], np.float32))
    assert z.dtype == np.float32
    seen = Scaling.of(x)(x)
    assert z[0].tolist()[:2] == [seen.max(0)[0], seen.min(0)[1]], "the edge of what was seen"
    assert np.abs(z).max() <= two_part.CLIP
    assert np.abs(Scaling.of(x)(x).mean(0)).max() < 0.1


def test_hazard_is_learned_only_from_those_not_active_before() -> None:
    second = Increment.all(Labels.of(ROWS))[1]
    assert not (second.fresh & ROWS.between[:, 0]).any()
    assert (second.mature & ROWS.between[:, 0]).any(), "or the claim is empty"
    assert len(second.value) == second.paid.sum()
    assert (second.value > 0).all()


def test_what_an_unseen_type_can_move_is_not_learned_from() -> None:
    """The log holds purchases only: `since_event` varies, but browsing will move it."""
    kept = two_part.named(two_part.learnable(ROWS))
    assert np.ptp(ROWS.features[:, two_part.NAMES.index("since_event")]) > 0
    assert not {*kept} & (moved_by(("browse", "interaction")) | {"log_age"})
    assert {"since_order", "orders", "log_mean_order_value"} <= {*kept}
