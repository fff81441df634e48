"""The buy-till-you-die models by pymc-marketing, where somebody wants a second opinion.

Flat priors and the posterior's mode, which is maximum likelihood: the same models as
scoring.judging.baselines.btyd by other people's code, and a test holds the two equal. For
evaluation only: the package brings a compiler and a sampler, and takes tens of seconds where ours
takes one.

Source: pymc-marketing (Apache-2.0), pymc_marketing.clv; the extra `baselines`. Shapes as in
scoring.judging.baselines.btyd.
"""

from __future__ import annotations

import logging
import warnings
from importlib import import_module
from typing import Any

import numpy as np

from scoring.errors import ScoringError
from scoring.judging.metrics import Values

FLAT = {"BetaGeoModel": ("r", "alpha", "a", "b"), "ParetoNBDModel": ("r", "alpha", "s", "beta")}


class PymcBtyd:
    """BG/NBD or Pareto/NBD with Gamma-Gamma; fitted when made."""

    def __init__(
        self, kind: str, x: Values, t_x: Values, age: Values, n: Values, m: Values
    ) -> None:
        """`kind`: a key of FLAT; (x, t_x, T) of orders, (n, m) of order values."""
        clv, prior, pandas = _packages()
        self._pandas = pandas
        self._orders = self._frame(frequency=x, recency=np.minimum(t_x, age), T=age)
        flat = {name: prior.Prior("HalfFlat") for name in FLAT[kind]}
        self._model = getattr(clv, kind)(model_config=flat)
        _quietly(self._model, self._orders)
        some = (n >= 1) & (m > 0)
        self._money = clv.GammaGammaModel()
        _quietly(self._money, self._frame(frequency=n[some], monetary_value=m[some]))
        self._n, self._m = n, m

    @property
    def parameters(self) -> dict[str, float]:
        """The estimates, by name."""
        found = {}
        for model, names in (
            (self._model, FLAT[type(self._model).__name__]),
            (self._money, ("p", "q", "v")),
        ):
            for name in names:
                found[name] = float(model.fit_result[name].mean())
        return found

    def expected(self, within: float) -> Values:
        """Orders expected in the next `within`."""
        return _values(self._model.expected_purchases(self._orders, future_t=within))

    def p_active(self, within: float) -> Values:
        """P(at least one order in the next `within`)."""
        if type(self._model).__name__ == "ParetoNBDModel":
            ask = self._model.expected_purchase_probability
            return 1 - _values(ask(self._orders, n_purchases=0, future_t=within))
        none = _values(self._model.expected_probability_no_purchase(within, self._orders))
        # Who has no repeat order cannot have left by this model; 0.19.2 lets them (up to .04 off).
        once = self._orders["frequency"].to_numpy() == 0
        age = self._orders["T"].to_numpy()[once]
        r, alpha = self.parameters["r"], self.parameters["alpha"]
        none[once] = ((alpha + age) / (alpha + age + within)) ** r
        return 1 - none

    def worth(self) -> Values:
        """Expected mean order value of each user; of whom no order says anything, that of all."""
        p, q, v = (self.parameters[name] for name in ("p", "q", "v"))
        out = np.full(len(self._n), p * v / (q - 1))
        some = (self._n >= 1) & (self._m > 0)
        frame = self._frame(frequency=self._n[some], monetary_value=self._m[some])
        out[some] = _values(self._money.expected_customer_spend(frame))
        return out

    def _frame(self, **columns: Values) -> Any:
        users = np.arange(len(next(iter(columns.values()))))
        return self._pandas.DataFrame({"customer_id": users, **columns})


def _packages() -> tuple[Any, Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clv = import_module("pymc_marketing.clv")
    except ImportError as error:
        raise ScoringError(
            "the pymc_ baselines are fitted by pymc-marketing: install the package with its extra"
            " `baselines`, or name bg_gg and pareto_gg, which need none"
        ) from error
    return clv, import_module("pymc_extras.prior"), import_module("pandas")


def _quietly(model: Any, data: Any) -> None:
    """Fit by the mode, without a bar of its own."""
    logging.getLogger("pymc").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(data, method="map", progressbar=False)


def _values(found: Any) -> Values:
    """(N,) of an array over draws and users."""
    values: Values = np.asarray(found.mean(("chain", "draw")).values, np.float64)
    return values
