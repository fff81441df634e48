"""Our estimates against pymc-marketing's: the same models by other people's code.

pymc-marketing is in the extra `baselines`, which `make install` leaves out (a compiler and a
sampler for three formulas); run this file where it is installed. About three minutes.
"""

from importlib.util import find_spec

import numpy as np
import pytest

from scoring.errors import ScoringError
from scoring.judging.baselines.fitted import BASELINES, SECOND_OPINIONS
from scoring.judging.history import History
from scoring.judging.orders import DAY
from scoring.judging.past import Past

HERE = find_spec("pymc_marketing") is not None
needs_pymc = pytest.mark.skipif(not HERE, reason="pymc-marketing is in the extra `baselines`")


def shop() -> Past:
    """400 users with rates, order values and days of leaving of their own, at day 200."""
    rng = np.random.default_rng(4)
    user, day, value = [], [], []
    for who in range(400):
        first, worth = rng.integers(0, 90), rng.gamma(6, 5)
        leaves = first + rng.exponential(150)
        at = float(first)
        while at < min(leaves, 200):
            user.append(who)
            day.append(int(at))
            value.append(round(float(worth * rng.gamma(5, 0.2)), 2) + 0.01)
            at += rng.exponential(12 / rng.gamma(0.9))
    time_ms = np.array(day) * DAY
    names = {f"u{who}": who for who in range(401)}
    log = History(names, np.array(user), time_ms, time_ms, np.array(value))
    return Past.of(log, 200 * DAY, "user-day")


@needs_pymc
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["bg_gg", "pareto_gg"])
def test_pymc_marketing_says_the_same_of_every_user(name: str) -> None:
    past = shop()
    ours = BASELINES[name](past, [28, 91])
    theirs = SECOND_OPINIONS[f"pymc_{name}"](past, [28, 91])
    for a, b in zip(ours, theirs, strict=True):
        assert a.p_active is not None and b.p_active is not None
        assert b.expected == pytest.approx(a.expected, rel=5e-3, abs=1e-6)
        assert b.p_active == pytest.approx(a.p_active, abs=1e-3)


@pytest.mark.skipif(HERE, reason="says what happens without pymc-marketing")
def test_without_its_package_a_second_opinion_says_what_to_install() -> None:
    with pytest.raises(ScoringError, match="extra `baselines`"):
        SECOND_OPINIONS["pymc_bg_gg"](shop(), [28])
