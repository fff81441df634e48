"""Yes or no: users above a threshold against users who then did it; precision, recall and F1.

The task is to find the users who will order at all, or, with an amount, who will be worth at least
so much. A model's score is its P(active) for the first, its expected value for the second. The
threshold is the one of the highest F1 on the validation window, an earlier cut-off whose labels
were whole by the cut-off that is judged: on the window that is judged nothing is chosen.

Shapes: N users. Source: Lipton, Elkan & Narayanaswamy 2014, arXiv:1402.1892 (choosing by F1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore import times
from scoring.judging.metrics import NAN, Values
from scoring.training.forecasts import Forecast

Bools = npt.NDArray[np.bool_]

RATES = ("accuracy", "precision", "recall", "f1")


@dataclass(frozen=True, slots=True)
class Task:
    """Who is to be found."""

    amount: float | None = None  # None: whoever orders at all

    @property
    def name(self) -> str:
        """For people and JSON."""
        return "active" if self.amount is None else f"value >= {self.amount:g}"

    def truth(self, value: Values, active: Bools) -> Bools:
        """(N,) who did it."""
        return active if self.amount is None else value >= self.amount

    def score(self, said: Forecast) -> Values:
        """(N,) what the threshold is held against."""
        return said.activity if self.amount is None else said.expected


@dataclass(frozen=True, slots=True)
class Threshold:
    """Chosen on a validation window; None where that could not be, with the reason."""

    at: float | None
    reason: str | None = None
    as_of_ms: int | None = None  # the validation cut-off
    users: int = 0
    positive: int = 0
    held_out: bool = False  # on users whom the model was not trained on

    def as_json(self, task: Task, rates: dict[str, float | None]) -> dict[str, Any]:
        """`classification` of a run."""
        moment = None if self.as_of_ms is None else times.text(self.as_of_ms)
        return {
            "task": task.name,
            "threshold": self.at,
            "reason": self.reason,
            "validation": {
                "as_of": moment,
                "users": self.users,
                "positive": self.positive,
                "held_out": self.held_out,
            },
            **rates,
        }


def choose(truth: Bools, score: Values) -> float | None:
    """The threshold of the highest F1, half-way to the next lower score; None: nobody did it.

    >>> choose(np.array([True, True, False, False]), np.array([0.9, 0.6, 0.4, 0.1]))
    0.5
    """
    if not truth.any():
        return None
    order = np.argsort(-score, kind="stable")
    along, hit = score[order], np.cumsum(truth[order])
    ends = np.flatnonzero(np.append(along[1:] != along[:-1], True))  # equal scores stay together
    f1 = 2 * hit[ends] / (ends + 1 + hit[-1])
    best = int(np.argmax(f1))
    lower = along[ends[best + 1]] if best + 1 < len(ends) else along[ends[best]]
    return float((along[ends[best]] + lower) / 2)


def rates(truth: Bools, score: Values, threshold: float | None) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of `score >= threshold`; NaN where not defined.

    >>> found = rates(np.array([True, True, False]), np.array([0.9, 0.1, 0.8]), 0.5)
    >>> [round(found[name], 2) for name in RATES]
    [0.33, 0.5, 0.5, 0.5]
    """
    if threshold is None or not len(truth):
        return dict.fromkeys(RATES, NAN)
    said = score >= threshold
    hit, told, did = int((said & truth).sum()), int(said.sum()), int(truth.sum())
    return {
        "accuracy": float((said == truth).mean()),
        "precision": hit / told if told else NAN,
        "recall": hit / did if did else NAN,
        "f1": 2 * hit / (told + did) if told + did else NAN,
    }
