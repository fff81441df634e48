import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring import calibration
from scoring.calibration import Calibration, Identity
from scoring.interface import Floats


def fitted(seed: int = 0, n: int = 4000) -> tuple[Calibration, Floats, Floats]:
    """A model that is too sure and 40 % too low, and its calibration."""
    rng = np.random.default_rng(seed)
    truth = np.sort(rng.beta(1, 4, (n, 3)), axis=1)
    logit = np.log(truth / (1 - truth))
    said = (1 / (1 + np.exp(-(1.6 * logit + 0.4)))).astype(np.float32)
    active = rng.random((n, 3)) < truth
    value = np.where(active, rng.lognormal(1, 1, (n, 3)), 0.0)
    expected = (0.6 * truth * np.exp(1.5)).astype(np.float32)
    mask = np.ones((n, 3), bool)
    return calibration.fit(expected, said, value, active, mask), said, truth.astype(np.float32)


def test_a_model_that_is_too_sure_is_brought_back() -> None:
    made, said, truth = fitted()
    after = made.activity(said)
    assert np.abs(after - truth).mean() < 0.25 * np.abs(said - truth).mean()
    assert after.mean() == pytest.approx(truth.mean(), rel=0.05)


def test_a_level_that_is_too_low_is_raised() -> None:
    made, _, _ = fitted()
    assert made.level.tolist() == pytest.approx([1 / 0.6] * 3, rel=0.15)


@given(
    slope=st.floats(0.2, 5),
    shift=st.lists(st.floats(-4, 4), min_size=3, max_size=3),
    p=st.lists(
        st.lists(st.floats(1e-5, 1 - 1e-5), min_size=3, max_size=3), min_size=2, max_size=20
    ),
)
def test_horizons_stay_ordered_and_users_keep_their_rank(
    slope: float, shift: list[float], p: list[list[float]]
) -> None:
    made = Calibration(slope, np.sort(np.array(shift, np.float32)), np.ones(3, np.float32))
    before = np.sort(np.array(p, np.float32), axis=1)
    after = made.activity(before)
    assert (np.diff(after, axis=1) >= 0).all()
    for h in range(3):
        order = np.argsort(before[:, h], kind="stable")
        assert (np.diff(after[order, h]) >= 0).all()


def test_the_map_rises_strictly_where_floats_can_tell() -> None:
    made = Calibration(0.5, np.zeros(1, np.float32), np.ones(1, np.float32))
    p = np.linspace(0.001, 0.999, 500, dtype=np.float32)[:, None]
    assert (np.diff(made.activity(p)[:, 0]) > 0).all()


def test_fitted_levels_never_fall_with_the_horizon() -> None:
    rng = np.random.default_rng(1)
    expected = np.cumsum(rng.random((500, 3)), axis=1)
    # the short horizon is worth more than said, the long one less
    value = expected * np.array([2.0, 1.0, 0.7])
    active = np.ones((500, 3), bool)
    made = calibration.fit(expected, np.full((500, 3), 0.9), value, active, active)
    assert (np.diff(made.level) >= 0).all()
    total = (made.level * expected).sum()
    assert total == pytest.approx(value.sum(), rel=0.05)


def test_labels_that_are_not_mature_move_nothing() -> None:
    rng = np.random.default_rng(2)
    expected, p = rng.random((300, 2)).cumsum(1), np.sort(rng.random((300, 2)), axis=1)
    active = rng.random((300, 2)) < p
    value = np.where(active, 2.0, 0.0)
    mask = np.ones((300, 2), bool)
    mask[200:] = False
    wild = value.copy()
    wild[200:] = 1e6
    flipped = active.copy()
    flipped[200:] = ~flipped[200:]
    a = calibration.fit(expected, p, value, active, mask)
    b = calibration.fit(expected, p, wild, flipped, mask)
    assert a.dump() == b.dump()


def test_certain_activity_is_left_alone() -> None:
    made = Calibration(1.0, np.full(2, 3.0, np.float32), np.ones(2, np.float32))
    assert made.activity(np.array([[0.0, 1.0]], np.float32)).tolist() == [[0.0, 1.0]]


def test_manifest_form_gives_the_same_calibration() -> None:
    made, said, _ = fitted()
    again = calibration.of(made.dump())
    assert isinstance(again, Calibration)
    assert np.array_equal(again.activity(said), made.activity(said))
    assert np.array_equal(again.level, made.level)
    assert isinstance(calibration.of({}), Identity)


def test_another_number_of_horizons_is_refused() -> None:
    made, _, _ = fitted()
    with pytest.raises(ValueError, match="calibrated for 3 horizons"):
        made(np.zeros((1, 1, 2), np.float32), np.zeros((1, 1, 2), np.float32))
