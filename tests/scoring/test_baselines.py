from pathlib import Path

import numpy as np
import pytest
from scipy.special import hyp2f1

from scoring.judging import metrics
from scoring.judging.baselines.btyd import BgNbd, GammaGamma, ParetoNbd, _series
from scoring.judging.baselines.fitted import BASELINES
from scoring.judging.baselines.rfm import cells, fifths
from scoring.judging.cutoffs import BadQuestion
from scoring.judging.history import History
from scoring.judging.metrics import Values
from scoring.judging.orders import DAY, Orders, orders
from scoring.judging.past import Past

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


def history(user: np.ndarray, time_ms: np.ndarray, value: Values, users: int) -> History:
    """A log that everything reached at once."""
    names = {f"u{row}": row for row in range(users)}
    return History(names, user.astype(np.int64), time_ms, time_ms, value)


def sample_in_calibration() -> Orders:
    """The published estimates count a user's age up to the last day, not past it."""
    user, time_ms, value = cdnow("CDNOW_sample.txt")
    known = orders(user, time_ms, np.maximum(value, 0.001), int(user.max()) + 1, CUTOFF)
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
    past = Past.of(history(user, time_ms, value, n), CUTOFF, "user-day")
    after = (time_ms >= CUTOFF) & (time_ms < CUTOFF + 91 * DAY)
    actual = np.bincount(user[after], value[after], minlength=n).astype(np.float64)
    for name, ngini, dmape, bias in (
        ("bg_gg", 0.639, 0.262, 0.80),
        ("pareto_gg", 0.685, 0.465, 0.79),
    ):
        made = BASELINES[name](past, [91])[0].expected
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


def test_users_who_all_order_alike_are_expected_to_go_on() -> None:
    """Their rates differ so little that scipy's 2F1 has no value at the estimates."""
    rng = np.random.default_rng(0)
    n, age = 200, np.full(200, 14.0)
    x = rng.poisson(0.5 * 14, n).astype(np.float64)
    t_x = np.where(x > 0, 14 * rng.random(n) ** (1 / np.maximum(x, 1)), 0)
    model = BgNbd(48553.07, 142857.14, 0.0053955, 798.1116)
    z = 30 / 7 / (model.alpha + age + 30 / 7)
    theirs = hyp2f1(model.r + x, model.b + x, model.a + model.b + x - 1, z)
    assert not np.isfinite(theirs).all()
    made = model.expected(x, t_x, age, 30 / 7)
    assert made == pytest.approx(30 / 7 * model.r / model.alpha, rel=0.01)
    # where both have a value they agree
    usual = BgNbd(0.24, 4.4, 0.79, 2.4)
    z = 4.0 / (usual.alpha + age + 4.0)
    a, b, c = usual.r + x, usual.b + x, usual.a + usual.b + x - 1
    assert _series(np.ones(n), a, b, c, z) == pytest.approx(hyp2f1(a, b, c, z), rel=1e-9)


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
    by_day = orders(user, time_ms, value, 2, 9 * DAY)
    assert by_day.first.tolist() == [6.0, 0.0]
    assert by_day.buyer.tolist() == [True, False]
    by_event = orders(user, time_ms, value, 2, 9 * DAY, day_is_order=False)
    assert by_event.first.tolist() == [10.0, 3.0]
    assert by_event.spent.tolist() == by_day.spent.tolist() == [11.0, 0.0]


def test_nothing_at_or_after_the_cutoff_is_known() -> None:
    known = orders(np.array([0, 0]), np.array([0, DAY]), np.array([5.0, 7.0]), 1, DAY)
    assert known.total.tolist() == [5.0]


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_a_log_of_one_order_each_or_of_none_still_gets_finite_values(name: str) -> None:
    for value in (np.full(60, 5.0), np.full(60, -5.0)):
        past = Past.of(history(np.arange(60), np.arange(60) * DAY, value, 61), 60 * DAY, "user-day")
        for made in BASELINES[name](past, [7, 14]):
            assert np.isfinite(made.expected).all()
            assert (made.expected >= 0).all()


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_users_to_come_do_not_move_what_is_said_of_the_others(name: str) -> None:
    """The past has rows for users who are first seen later; they may not change a level."""
    rng = np.random.default_rng(0)
    user, time_ms = rng.integers(0, 40, 400), np.sort(rng.integers(0, 200 * DAY, 400))
    value = rng.lognormal(3, 1, 400)
    few = Past.of(history(user, time_ms, value, 40), 100 * DAY, "user-day")
    many = Past.of(history(user, time_ms, value, 400), 100 * DAY, "user-day")
    a, b = BASELINES[name](few, [30])[0], BASELINES[name](many, [30])[0]
    assert b.expected[:40] == pytest.approx(a.expected)


def test_a_later_horizon_is_worth_no_less() -> None:
    rng = np.random.default_rng(0)
    user, time_ms = rng.integers(0, 40, 400), np.sort(rng.integers(0, 200 * DAY, 400))
    past = Past.of(history(user, time_ms, rng.lognormal(3, 1, 400), 40), 200 * DAY, "user-day")
    for name in ("past_spend", "bg_gg", "pareto_gg"):
        short, long = BASELINES[name](past, [30, 60])
        assert (long.expected >= short.expected).all()


def shop_of_two_kinds() -> tuple[np.ndarray, np.ndarray, Values]:
    """40 regulars who order 10 each week, 60 who ordered once for 50 and never come again."""
    regular = np.repeat(np.arange(40), 30)
    weekly = np.tile(np.arange(30) * 7 * DAY, 40)
    once = np.arange(40, 100)
    user = np.concatenate([regular, once])
    time_ms = np.concatenate([weekly, np.full(60, DAY)])
    value = np.concatenate([np.full(len(regular), 10.0), np.full(60, 50.0)])
    return user, time_ms, value


def test_rfm_says_what_users_like_this_one_went_on_to_spend() -> None:
    user, time_ms, value = shop_of_two_kinds()
    past = Past.of(history(user, time_ms, value, 101), 140 * DAY, "user-day")
    made = BASELINES["rfm"](past, [28])[0]
    assert made.p_active is not None
    # four orders of 10 in 28 days; few users in a cell are drawn to the mean of all
    assert made.expected[:40] == pytest.approx(40, abs=4)
    assert made.p_active[:40] == pytest.approx(1, abs=0.1)
    assert made.expected[40:100] == pytest.approx(0, abs=3)


def test_rfm_learns_nothing_from_what_came_after() -> None:
    user, time_ms, value = shop_of_two_kinds()
    cut = 140 * DAY
    later = np.where(time_ms >= cut, value * 100, value)
    a = BASELINES["rfm"](Past.of(history(user, time_ms, value, 101), cut, "user-day"), [28])[0]
    b = BASELINES["rfm"](Past.of(history(user, time_ms, later, 101), cut, "user-day"), [28])[0]
    assert (a.expected == b.expected).all()


def test_rfm_without_an_earlier_window_says_what_to_ask_instead() -> None:
    user, time_ms, value = shop_of_two_kinds()
    log = history(user, time_ms, value, 101)
    with pytest.raises(BadQuestion, match="take a later --as-of"):
        BASELINES["rfm"](Past.of(log, 20 * DAY, "user-day"), [28])
    with pytest.raises(BadQuestion, match="take earlier --train-cutoffs"):
        BASELINES["rfm"](Past.of(log, 140 * DAY, "user-day", [130 * DAY]), [28])


def test_equal_users_are_in_one_cell_and_who_never_ordered_in_another() -> None:
    user, time_ms, value = shop_of_two_kinds()
    found = cells(Past.of(history(user, time_ms, value, 101), 140 * DAY, "user-day"))
    assert len(set(found[:40])) == len(set(found[40:100])) == 1
    assert found[100] == found.max() == 125
    assert fifths(np.arange(10.0)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
