"""What a value model has to beat: fitted in the same run, on what was known at the cut-off.

The usual BG/NBD + Gamma-Gamma, whose Gamma-Gamma leaves each user's first order out, is a straw
man (CDNOW, 13 weeks: nGini .639). Pareto/NBD with the first order in is the one to beat (.685).

A baseline takes the past and the horizons in days, and gives a forecast for each horizon; it is
fitted once. Shapes: U users of the log, rows as in scoring.judging.past.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from scoring.judging.baselines.btyd import BgNbd, GammaGamma, ParetoNbd
from scoring.judging.baselines.rfm import rfm
from scoring.judging.metrics import Values
from scoring.judging.orders import WEEK_DAYS, Orders
from scoring.judging.past import Past
from scoring.training.forecasts import Forecast

Baseline = Callable[[Past, Sequence[int]], list[Forecast]]


def past_spend(past: Past, days: Sequence[int]) -> list[Forecast]:
    """Frozen: all that the user ever spent, at the rate at which all users together spent it."""
    known = past.orders
    weeks = float(known.age.sum())
    usual = weeks / max(int(known.buyer.sum()), 1)  # age of a buyer
    level = 1 / (WEEK_DAYS * usual) if weeks > 0 else 0.0
    return [Forecast(np.maximum(known.spent, 0) * level * h) for h in days]


def rfm_quintiles(past: Past, days: Sequence[int]) -> list[Forecast]:
    """RFM quintiles: the mean future spend of the user's cell at earlier cut-offs."""
    return [rfm(past, h) for h in days]


def bg_gg(past: Past, days: Sequence[int]) -> list[Forecast]:
    """BG/NBD + Gamma-Gamma as usually shown: the first order is not in the Gamma-Gamma."""
    known = past.orders
    return _btyd(BgNbd, known, known.repeat, repeat_mean(known), days)


def pareto_gg(past: Past, days: Sequence[int]) -> list[Forecast]:
    """Pareto/NBD + Gamma-Gamma over all orders, the first one in: the baseline to beat."""
    known = past.orders
    n = known.repeat + 1
    return _btyd(ParetoNbd, known, n, known.total / n, days)


BASELINES: dict[str, Baseline] = {
    "past_spend": past_spend,
    "rfm": rfm_quintiles,
    "bg_gg": bg_gg,
    "pareto_gg": pareto_gg,
}


def pymc_bg_gg(past: Past, days: Sequence[int]) -> list[Forecast]:
    """bg_gg fitted by pymc-marketing with flat priors, a second opinion (extra `baselines`)."""
    known = past.orders
    return _by_pymc("BetaGeoModel", known, known.repeat, repeat_mean(known), days)


def pymc_pareto_gg(past: Past, days: Sequence[int]) -> list[Forecast]:
    """pareto_gg fitted by pymc-marketing with flat priors, a second opinion (extra `baselines`)."""
    known = past.orders
    n = known.repeat + 1
    return _by_pymc("ParetoNBDModel", known, n, known.total / n, days)


SECOND_OPINIONS: dict[str, Baseline] = {"pymc_bg_gg": pymc_bg_gg, "pymc_pareto_gg": pymc_pareto_gg}


def repeat_mean(known: Orders) -> Values:
    """(U,) mean value of the orders after the first; 0 where there is none."""
    rest = known.total - known.first
    return np.divide(rest, known.repeat, out=np.zeros_like(rest), where=known.repeat > 0)


def _by_pymc(kind: str, known: Orders, n: Values, m: Values, days: Sequence[int]) -> list[Forecast]:
    from scoring.judging.baselines.pymc_btyd import PymcBtyd

    buyer = known.buyer
    if not buyer.any():
        return [Forecast(np.zeros(len(known)), np.zeros(len(known))) for _ in days]
    model = PymcBtyd(
        kind, known.repeat[buyer], known.recency[buyer], known.age[buyer], n[buyer], m[buyer]
    )
    return [
        _over_all(
            buyer, model.expected(h / WEEK_DAYS) * model.worth(), model.p_active(h / WEEK_DAYS)
        )
        for h in days
    ]


def _over_all(buyer: npt.NDArray[np.bool_], expected: Values, p_active: Values) -> Forecast:
    """Of buyers, over all users; who never ordered gets 0, rightly or not."""
    both = np.zeros((2, len(buyer)))
    both[:, buyer] = expected, p_active
    return Forecast(both[0], both[1])


def _btyd(
    family: type[BgNbd] | type[ParetoNbd], known: Orders, n: Values, m: Values, days: Sequence[int]
) -> list[Forecast]:
    """Expected orders x expected order value."""
    buyer = known.buyer
    if not buyer.any():
        return [Forecast(np.zeros(len(known)), np.zeros(len(known))) for _ in days]
    x, t_x, age = known.repeat[buyer], known.recency[buyer], known.age[buyer]
    model = family.fit(x, t_x, age)
    worth = GammaGamma.fit(n[buyer], m[buyer]).mean(n[buyer], m[buyer])
    return [
        _over_all(
            buyer,
            model.expected(x, t_x, age, h / WEEK_DAYS) * worth,
            model.p_active(x, t_x, age, h / WEEK_DAYS),
        )
        for h in days
    ]
