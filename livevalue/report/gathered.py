"""An evaluation's answers, gathered by model over cut-offs and seeds, for tables and charts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scoring.judging.evaluation import Question, Report
from scoring.judging.metrics import Values
from scoring.judging.scored import Scored

Figures = dict[str, float | None]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Horizon:
    """Everything about one horizon."""

    days: int
    question: Question
    pooled: list[Row]  # a model each, in the order asked
    runs: list[Row]
    comparisons: list[Row]  # over all cut-offs
    scored: list[Scored]

    @classmethod
    def all(cls, report: Report, question: Question) -> list[Horizon]:
        """In the order asked."""
        return [cls.of(report, question, days) for days in question.horizons_days]

    @classmethod
    def of(cls, report: Report, question: Question, days: int) -> Horizon:
        """One of them."""

        def here(rows: Sequence[Row]) -> list[Row]:
            return [row for row in rows if row["horizon_days"] == days]

        several = len(question.as_of_ms) > 1
        found = [row for row in here(report.comparisons) if (row["as_of"] == "pooled") == several]
        mine = [one for one in report.scored if one.days == days]
        return cls(days, question, here(report.pooled), here(report.runs), found, mine)

    @property
    def models(self) -> list[str]:
        """By number: their colours and shapes."""
        return [row["model"] for row in self.pooled]

    def of_model(self, model: str) -> list[Scored]:
        """At every cut-off, with every seed."""
        return [one for one in self.scored if one.model == model]

    def pairs(self, model: str) -> list[tuple[Values, Values]]:
        """(what came, what was said) at each cut-off and seed."""
        return [(one.actual, one.forecast.expected) for one in self.of_model(model)]

    def activity(self, model: str) -> list[tuple[Values, Values]]:
        """(who was active, P(active)); empty where the model says none."""
        return [
            (one.active.astype(np.float64), one.forecast.p_active)
            for one in self.of_model(model)
            if one.forecast.p_active is not None
        ]

    def difference(self, model: str, metric: str) -> Row | None:
        """Of the first model against this one."""
        found = (r for r in self.comparisons if r["b"] == model and r["metric"] == metric)
        return next(found, None)

    def by_cutoff(self, model: str, metric: str) -> list[tuple[str, float, float, float]]:
        """(cut-off, metric, low, high), the mean over seeds."""
        out = []
        for as_of in dict.fromkeys(row["as_of"] for row in self.runs):
            rows = [r for r in self.runs if r["model"] == model and r["as_of"] == as_of]
            ends = [row["intervals"].get(metric, (None, None)) for row in rows]
            out.append(
                (
                    as_of,
                    _mean([row["metrics"][metric] for row in rows]),
                    _mean([low for low, _ in ends]),
                    _mean([high for _, high in ends]),
                )
            )
        return out

    def groups(self) -> list[Row]:
        """A row a group: users over all cut-offs, and the models' mean metrics."""
        named = dict.fromkeys((g["by"], g["group"]) for run in self.runs for g in run["groups"])
        return [self._group(by, name) for by, name in named]

    def _group(self, by: str, name: str) -> Row:
        mine: dict[str, list[Row]] = {model: [] for model in self.models}
        for run in self.runs:
            for group in run["groups"]:
                if (group["by"], group["group"]) == (by, name):
                    mine[run["model"]].append(group)
        first = mine[self.models[0]]
        return {
            "by": by,
            "group": name,
            "users": _total(first, "users", self._seeds),
            "active": _total(first, "active", self._seeds),
            "models": [
                {
                    metric: _mean([g["metrics"].get(metric) for g in groups if g["users"]])
                    for metric in ("ngini", "bias", "mae")
                }
                for groups in mine.values()
            ],
        }

    @property
    def _seeds(self) -> int:
        return max(1, len({row["seed"] for row in self.runs if row["model"] == self.models[0]}))

    def mean_fact(self, model: str, read: Callable[[Row], float | None]) -> float:
        """Of something that stands in the runs of a model."""
        return _mean([read(row) for row in self.runs if row["model"] == model])

    def first_run(self, model: str) -> Row:
        """Of what does not differ between cut-offs: reasons, sizes."""
        return next(row for row in self.runs if row["model"] == model)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _total(groups: Sequence[Row], name: str, seeds: int) -> int:
    return sum(int(group[name]) for group in groups) // seeds
