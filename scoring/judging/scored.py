"""One model's word on users at a cut-off, beside what came true; and its metrics.

Shapes: N users of the population. What a metric is: scoring.judging.metrics and docs/evaluation.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore import times
from scoring.judging.metrics import METRICS, Values, auc, bias, brier, cover80, ece, number
from scoring.training.forecasts import Forecast

__all__ = ["Outcome", "Scored", "measures", "number"]  # number: also for scoring.judging.staleness

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What users did in the window, (N,) each."""

    value: Values  # max(0, net value)
    active: Bools  # at least one order
    net: Values  # below 0 where more was returned than bought

    def rows(self, at: Bools | Ints) -> Outcome:
        """Of some users."""
        return Outcome(self.value[at], self.active[at], self.net[at])


def measures(said: Forecast, came: Outcome) -> dict[str, float | None]:
    """Every metric that needs no threshold, by name; None where not defined."""
    if not len(came.value):
        return {}
    out: dict[str, float | None] = {
        name: metric(came.value, said.expected) for name, metric in METRICS.items()
    }
    out["bias_net"] = bias(came.net, said.expected)
    out["auc"] = auc(came.active, said.activity)
    out["brier"] = None if said.p_active is None else brier(came.active, said.p_active)
    out["ece"] = None if said.p_active is None else ece(came.active, said.p_active)
    out["cover80"] = None
    if said.p10 is not None and said.p90 is not None:
        out["cover80"] = cover80(came.value, said.p10, said.p90)
    return {name: number(value) for name, value in out.items()}


@dataclass(frozen=True, slots=True)
class Scored:
    """One model at one cut-off for one horizon; rows are the users of the population."""

    as_of_ms: int
    days: int
    model: str
    seed: int | None
    user: Ints  # (N,) row in History.users
    came: Outcome
    forecast: Forecast
    n_train: int
    seconds: float
    rates: dict[str, float | None] = field(default_factory=dict)  # of the threshold task
    facts: dict[str, Any] = field(default_factory=dict)  # classification, targeting, groups

    @property
    def label(self) -> str:
        """Model, and seed where it has one."""
        return self.model if self.seed is None else f"{self.model} #{self.seed}"

    @property
    def actual(self) -> Values:
        """(N,) max(0, net value)."""
        return self.came.value

    @property
    def active(self) -> Bools:
        """(N,) at least one order."""
        return self.came.active

    def metrics(self) -> dict[str, float | None]:
        """By name; None where not defined."""
        return {**measures(self.forecast, self.came), **self.rates}

    def as_json(self, population: str) -> dict[str, Any]:
        """A run of `evaluate --json`."""
        return {
            "as_of": times.text(self.as_of_ms),
            "horizon_days": self.days,
            "model": self.model,
            "seed": self.seed,
            "population": population,
            "users": len(self.user),
            "n_train": self.n_train,
            "seconds": round(self.seconds, 3),
            "metrics": self.metrics(),
            **self.facts,
        }
