"""One model's word on users at a cut-off, beside what came true; and its metrics.

Shapes: N users of the population. What a metric is: scoring.metrics and docs/evaluation.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore import times
from scoring.forecasts import Forecast
from scoring.metrics import METRICS, Values, auc, brier, cover80

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scored:
    """One model at one cut-off for one horizon; rows are the users of the population."""

    as_of_ms: int
    days: int
    model: str
    seed: int | None
    user: Ints  # (N,) row in History.users
    actual: Values  # (N,) max(0, net value)
    active: npt.NDArray[np.bool_]  # (N,)
    forecast: Forecast
    n_train: int
    seconds: float

    def metrics(self) -> dict[str, float | None]:
        """By name; None where not defined."""
        said = self.forecast
        out: dict[str, float | None] = {
            name: metric(self.actual, said.expected) for name, metric in METRICS.items()
        }
        out["auc"] = auc(self.active, said.activity)
        out["brier"] = None if said.p_active is None else brier(self.active, said.p_active)
        out["cover80"] = None
        if said.p10 is not None and said.p90 is not None:
            out["cover80"] = cover80(self.actual, said.p10, said.p90)
        return {name: number(value) for name, value in out.items()}

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
        }


def number(value: float | None) -> float | None:
    """JSON has no NaN: what is not defined is null."""
    return value if value is not None and np.isfinite(value) else None
