from pathlib import Path

import numpy as np
import pytest
from scipy.special import hyp2f1

from scoring import baselines, metrics
from scoring.baselines import DAY, BgNbd, GammaGamma, Orders, ParetoNbd
from scoring.metrics import Values

DATA = Path(__file__).parents[3] / "shared" / "data" / "cdnow"
START = int(np.datetime64("1997-01-01", "ms").astype(np.int64))
CUTOFF = START + 273 * DAY

needs_cdnow = pytest.mark.skipif(
    not DATA.is_dir(), reason="CDNOW is an academic file that may not ship: ../shared/data/cdnow"
)


def cdnow(name: str) -> tuple[np.ndarray, np.ndarray, Values]:
    """(user, time_ms, value) of every line."""
    master = name == "CDNOW_master.txt"
    table = np.loadtxt(DATA / name, skiprows=1 if master else 0)
    user = np.unique(table[:, 0], return_inverse=True)[1]
    date = table[:, -3].astype(np.int64)
    text = [f"{d // 10000}-{d // 100 % 100:02d}-{d % 100:02d}" for d in date]
    return user, np.array(text, "datetime64[ms]").astype(np.int64), table[:, -1]


def sample_in_calibration() -> Orders:
    """The published estimates count a user's age up to the last day, not past it."""
    user, time_ms, value = cdnow("CDNOW_sample.txt")
    known = baselines.orders(user, time_ms, np.maximum(value, 0.001), int(user.max()) + 1, CUTOFF)
    return Orders(
        known.repeat, known.recency, known.age - 1 / 7, known.first, known.total, known.spent
    )


@needs_cdnow
def test_bg_nbd_finds_the_published_estimates_of_the_cdnow_sample() -> None:
    known = sample_in_calibration()
    model = BgNbd.fit(known.repeat, known.recency, known.age)
    assert model.r == pytest.approx(0.243, abs=1e-3)
    assert model.alpha == pytest.approx(4.414, abs=0.01)
    assert model.a == pytest.approx(0.793, abs=3e-3)
    assert model.b == pytest.approx(2.426, abs=0.01)


@needs_cdnow
def test_pareto_nbd_finds_the_published_estimates_of_the_cdnow_sample() -> None:
    known = sample_in_calibration()
    model = ParetoNbd.fit(known.repeat, known.recency, known.age)
    assert model.r == pytest.approx(0.553, abs=1e-3)
    assert model.alpha == pytest.approx(10.578, abs=0.01)
    assert model.s == pytest.approx(0.606, abs=1e-3)
    assert model.beta == pytest.approx(11.669, abs=0.03)


@needs_cdnow
def test_gamma_gamma_finds_the_published_estimates_of_the_cdnow_sample() -> None:
    known = sample_in_calibration()
    n = known.repeat
    m = np.divide(known.total - known.first, n, out=np.zeros_like(n), where=n > 0)
    model = GammaGamma.fit(n, m)
    assert model.p == pytest.approx(6.25, rel=0.02)
    assert model.q == pytest.approx(3.74, rel=0.02)
    assert model.v == pytest.approx(15.44, rel=0.02)


@needs_cdnow
def test_baselines_rank_cdnow_as_lifetimes_does() -> None:
    user, time_ms, value = cdnow("CDNOW_master.txt")
    n = int(user.max()) + 1
    known = baselines.orders(user, time_ms, value, n, CUTOFF)
    after = (time_ms >= CUTOFF) & (time_ms < CUTOFF + 91 * DAY)
    actual = np.bincount(user[after], value[after], minlength=n).astype(np.float64)
    for name, ngini, dmape, bias in (
        ("bg_gg", 0.639, 0.262, 0.80),
        ("pareto_gg", 0.685, 0.465, 0.79),
    ):
        made = baselines.BASELINES[name](known, 91.0).expected
        assert metrics.ngini(actual, made) == pytest.approx(ngini, abs=2e-3)
        assert metrics.dmape(actual, made) == pytest.approx(dmape, abs=5e-3)
        assert metrics.bias(actual, made) == pytest.approx(bias, abs=6e-3)


@pytest.mark.parametrize(("alpha", "beta"), [(10.6, 11.7), (11.7, 10.6), (2.0, 30.0), (5.0, 5.0)])
def test_pareto_likelihood_is_that_of_the_literature(alpha: float, beta: float) -> None:
    """Equations 19 to 22 of Fader & Hardie 2005, with their two hypergeometric functions."""
    rng = np.random.default_rng(0)
    x, age = rng.integers(0, 60, 2000).astype(np.float64), rng.uniform(1, 60, 2000)
    t_x = np.where(x > 0, age * rng.random(2000), 0)
    r, s = 0.55, 0.6
    power = r + s + x
    second = np.full_like(x, s + 1) if alpha >= beta else r + x
    wide, gap = max(alpha, beta), abs(alpha - beta)

    def part(t: Values) -> Values:
        series = hyp2f1(power, second, power + 1, gap / (wide + t))
        out: Values = np.log(series) - power * np.log(wide + t)
        return out

    theirs = np.log(s / power) + part(t_x) + np.log(-np.expm1(part(age) - part(t_x)))
    assert ParetoNbd(r, alpha, s, beta)._log_left(x, t_x, age) == pytest.approx(theirs, abs=1e-6)


def simulate_pareto(model: ParetoNbd, n: int, age: float, within: float) -> tuple[Values, ...]:
    """(x, t_x, orders in the next `within`) of n users who all began `age` ago."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(model.r, 1 / model.alpha, n)
    left = rng.exponential(1 / rng.gamma(model.s, 1 / model.beta, n))
    until = np.minimum(left, age + within)
    user = np.repeat(np.arange(n), rng.poisson(rate * until))
    times = rng.random(len(user)) * until[user]
    seen = times < age
    t_x = np.zeros(n)
    np.maximum.at(t_x, user[seen], times[seen])
    x = np.bincount(user[seen], minlength=n).astype(np.float64)
    later = np.bincount(user[~seen], minlength=n).astype(np.float64)
    return x, t_x, later


def test_pareto_nbd_forecasts_what_a_simulation_of_it_does() -> None:
    model = ParetoNbd(0.9, 6.0, 0.7, 9.0)
    n, age, within = 200_000, 30.0, 12.0
    x, t_x, later = simulate_pareto(model, n, age, within)
    ages = np.full(n, age)
    expected = model.expected(x, t_x, ages, within)
    p_active = model.p_active(x, t_x, ages, within)
    for rows in (x == 0, x == 1, x >= 4, t_x > 25):
        assert expected[rows].mean() == pytest.approx(later[rows].mean(), rel=0.06)
        assert p_active[rows].mean() == pytest.approx((later[rows] > 0).mean(), rel=0.06)


def test_bg_nbd_forecasts_what_a_simulation_of_it_does() -> None:
    model, rng = BgNbd(0.9, 6.0, 0.8, 2.5), np.random.default_rng(0)
    n, age, within = 200_000, 30.0, 12.0
    rate, quits = rng.gamma(model.r, 1 / model.alpha, n), rng.beta(model.a, model.b, n)
    now, alive = np.zeros(n), np.ones(n, bool)
    x, t_x, later = np.zeros(n), np.zeros(n), np.zeros(n)
    while alive.any():
        now = np.where(alive, now + rng.exponential(1 / rate), now)
        alive &= now < age + within
        seen = alive & (now < age)
        x, t_x, later = x + seen, np.where(seen, now, t_x), later + (alive & ~seen)
        alive &= rng.random(n) >= quits
    ages = np.full(n, age)
    expected = model.expected(x, t_x, ages, within)
    p_active = model.p_active(x, t_x, ages, within)
    for rows in (x == 0, x == 1, x >= 4):
        assert expected[rows].mean() == pytest.approx(later[rows].mean(), rel=0.06)
        assert p_active[rows].mean() == pytest.approx((later[rows] > 0).mean(), rel=0.06)


def test_a_return_on_the_day_of_the_order_is_taken_off_it() -> None:
    user = np.array([0, 0, 0, 1, 1])
    time_ms = np.array([1, 2, 3 * DAY, 5, 6])
    value = np.array([10.0, -4.0, 5.0, 3.0, -3.0])
    by_day = baselines.orders(user, time_ms, value, 2, 9 * DAY)
    assert by_day.first.tolist() == [6.0, 0.0]
    assert by_day.buyer.tolist() == [True, False]
    by_event = baselines.orders(user, time_ms, value, 2, 9 * DAY, day_is_order=False)
    assert by_event.first.tolist() == [10.0, 3.0]
    assert by_event.spent.tolist() == by_day.spent.tolist() == [11.0, 0.0]


def test_nothing_at_or_after_the_cutoff_is_known() -> None:
    known = baselines.orders(np.array([0, 0]), np.array([0, DAY]), np.array([5.0, 7.0]), 1, DAY)
    assert known.total.tolist() == [5.0]


@pytest.mark.parametrize("name", sorted(baselines.BASELINES))
def test_a_log_of_one_order_each_or_of_none_still_gets_finite_values(name: str) -> None:
    for value in (np.full(30, 5.0), np.full(30, -5.0)):
        known = baselines.orders(np.arange(30), np.arange(30) * DAY, value, 31, 60 * DAY)
        made = baselines.BASELINES[name](known, 30.0)
        assert np.isfinite(made.expected).all()
        assert (made.expected >= 0).all()
