"""Whatever calibration was fitted and a model says: ranks and the laws of a document hold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scoring import calibration
from scoring.calibration import LEVEL, SHIFT, SLOPE, Calibration
from scoring.heads import Mixture, mixture, prediction
from scoring.interface import Floats, Prediction
from scoring.retraining.corrector import FACTOR

USERS, KNOTS, HORIZONS = 12, 3, 3
SHAPE = (USERS, KNOTS, HORIZONS)

# Probabilities down to what float32 can hold beside 1, and the ends themselves.
chances = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1, width=32))
columns = {
    "q": arrays(np.float32, SHAPE, elements=chances),
    "hazard": arrays(np.float32, SHAPE, elements=chances),
    "mu": arrays(np.float32, SHAPE, elements=st.floats(-20, 20, width=32)),
    "sigma": arrays(np.float32, SHAPE, elements=st.floats(0.0625, 2.5, width=32)),
}


@st.composite
def calibrations(draw: st.DrawFn) -> Calibration:
    """All that `fit` can give: bounded, and non-decreasing over the horizons."""
    rising = st.lists(st.floats(-SHIFT, SHIFT), min_size=HORIZONS, max_size=HORIZONS).map(sorted)
    levels = st.lists(st.floats(*LEVEL), min_size=HORIZONS, max_size=HORIZONS).map(sorted)
    factor = draw(st.floats(*FACTOR))  # of a level corrector that was kept
    return Calibration(
        draw(st.floats(*SLOPE)),
        np.array(draw(rising), np.float32),
        np.array(draw(levels), np.float32) * np.float32(factor),
    )


def told(said: Mixture, made: Calibration) -> Prediction:
    return prediction(said, *made(said.expected, said.p_active))


def rises(values: Floats) -> bool:
    """Along the horizons, up to a rounding step of a sum in float32."""
    steps: npt.NDArray[np.bool_] = np.diff(values, axis=-1) >= -1e-6 * np.abs(values[..., 1:])
    return bool(steps.all())


@given(made=calibrations(), **columns)
def test_horizons_stay_ordered_and_quantiles_are_of_what_is_served(
    made: Calibration, q: Floats, hazard: Floats, mu: Floats, sigma: Floats
) -> None:
    out = told(mixture(q, mu, sigma, 1e6, hazard), made)
    for values in (out.expected, out.p_active, out.p50, out.p90):
        assert np.isfinite(values).all() and (values >= 0).all()
        assert rises(values)
    assert (out.p_active <= 1).all()
    assert (out.p50 <= out.p90).all()
    assert (np.diff(out.if_active, axis=-1) >= 0).all()
    # Inverted after the calibration: nobody whom it makes rather silent than active has a median.
    assert (out.p50[:, 0][out.p_active[:, 0, 0] <= 0.5] == 0).all()
    assert (out.p90[:, 0][out.p_active[:, 0, 0] <= 0.1] == 0).all()


@given(made=calibrations(), **columns)
def test_no_two_users_change_places(
    made: Calibration, q: Floats, hazard: Floats, mu: Floats, sigma: Floats
) -> None:
    said = mixture(q, mu, sigma, 1e6, hazard)
    out = told(said, made)
    for before, after in ((said.expected, out.expected), (said.p_active, out.p_active)):
        for h in range(HORIZONS):
            raw, now = before[:, 0, h], after[:, 0, h]
            assert (np.diff(now[np.argsort(raw, kind="stable")]) >= 0).all()
    # And who stood clearly apart still does: the maps rise strictly.
    ahead = said.expected[:, None, 0] > said.expected[None, :, 0] * 1.001 + 1e-3
    assert (out.expected[:, None, 0] > out.expected[None, :, 0])[ahead].all()


@given(made=calibrations(), **columns)
def test_the_first_knot_of_silence_is_the_value_itself(
    made: Calibration, q: Floats, hazard: Floats, mu: Floats, sigma: Floats
) -> None:
    curve = told(mixture(q, mu, sigma, 1e6, hazard), made)
    now = told(mixture(q[:, :1], mu[:, :1], sigma[:, :1], 1e6, hazard[:, :1]), made)
    assert np.array_equal(curve.expected[:, 0], now.expected[:, 0])
    assert np.array_equal(curve.p_active[:, 0], now.p_active[:, 0])
    assert np.array_equal(curve.p90, now.p90)


@given(slope=st.floats(*SLOPE), shift=st.floats(-SHIFT, SHIFT))
def test_the_map_of_activity_rises_strictly_over_the_span_that_models_use(
    slope: float, shift: float
) -> None:
    made = Calibration(slope, np.full(1, shift, np.float32), np.ones(1, np.float32))
    p = np.linspace(0.01, 0.9, 90, dtype=np.float32)[:, None]
    after = made.activity(p)[:, 0]
    inside = after[1:] < 1 - 1e-5  # beyond, float32 has no room between
    assert (np.diff(after)[inside] > 0).all()


@given(
    n=st.integers(1, 60),
    seed=st.integers(0, 10_000),
    mature=st.floats(0, 1),
    scale=st.floats(1e-3, 1e3),
)
def test_whatever_it_is_fitted_on_it_stays_within_its_bounds(
    n: int, seed: int, mature: float, scale: float
) -> None:
    r = np.random.default_rng(seed)
    p = np.maximum.accumulate(r.random((n, HORIZONS)) ** 3, axis=1)
    said = np.cumsum(r.lognormal(0, 2, (n, HORIZONS)) * p, axis=1)
    active = np.logical_or.accumulate(r.random((n, HORIZONS)) < p * r.random(), axis=1)
    value = np.maximum.accumulate(np.where(active, said * scale, 0), axis=1)
    made = calibration.fit(said, p, value, active, r.random((n, HORIZONS)) < mature)
    assert SLOPE[0] <= made.slope <= SLOPE[1]
    assert (np.diff(made.shift) >= 0).all() and (np.abs(made.shift) <= SHIFT).all()
    assert (np.diff(made.level) >= 0).all()
    assert (made.level >= LEVEL[0] - 1e-6).all() and (made.level <= LEVEL[1] + 1e-6).all()
