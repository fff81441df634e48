"""How sure are the figures, and is the first model named better than the others?

Intervals of 95 % by scoring.judging.bootstrap: users are drawn with replacement, each with all of
his windows where cut-offs are pooled, and all models are judged on the same draw. Several seeds of
a model count as one model in comparisons and in what is pooled: the mean of their metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore import times
from scoring.judging.bootstrap import Bootstrapped, Part, bootstrap
from scoring.judging.metrics import Values, number
from scoring.judging.question import Question
from scoring.judging.scored import Scored

WITH_INTERVAL = ("ngini", "top20", "mae", "bias")
COMPARED = ("ngini", "top20", "mae")
POOLED = "pooled"

Interval = list[float | None]  # low, high


@dataclass(frozen=True, slots=True)
class Compared:
    """One horizon at one cut-off, or over all of them."""

    as_of: str  # or POOLED
    days: int
    scored: Sequence[Scored]
    found: Bootstrapped  # by label, and by model: the mean of its seeds

    @classmethod
    def of(cls, as_of: str, days: int, scored: Sequence[Scored], draws: int) -> Compared:
        """Draw once for all models."""
        moments = dict.fromkeys(one.as_of_ms for one in scored)
        parts = []
        for moment in moments:
            here = [one for one in scored if one.as_of_ms == moment]
            said = {one.label: one.forecast.expected for one in here}
            parts.append(Part(here[0].actual, here[0].user, said))
        drawn = bootstrap(parts, WITH_INTERVAL, draws)
        return cls(as_of, days, scored, Bootstrapped(_with_means(drawn.values, scored)))

    def intervals(self, name: str) -> dict[str, Interval]:
        """Of a label or a model."""
        out: dict[str, Interval] = {}
        for metric in WITH_INTERVAL:
            one = self.found.interval(name, metric)
            out[metric] = [number(one.low), number(one.high)]
        return out

    def differences(self, first: str, others: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The first model against each other one: its metric minus theirs."""
        for other in others:
            for metric in COMPARED:
                one = self.found.difference(first, other, metric)
                yield {
                    "a": first,
                    "b": other,
                    "as_of": self.as_of,
                    "horizon_days": self.days,
                    "metric": metric,
                    "delta": number(one.delta),
                    "low": number(one.low),
                    "high": number(one.high),
                }

    def pooled(self) -> Iterator[dict[str, Any]]:
        """Each model over the cut-offs: mean metrics, and intervals."""
        for model in dict.fromkeys(one.model for one in self.scored):
            mine = [one for one in self.scored if one.model == model]
            yield {
                "model": model,
                "horizon_days": self.days,
                "cutoffs": len({one.as_of_ms for one in mine}),
                "users": len(np.unique(np.concatenate([one.user for one in mine]))),
                "metrics": _mean([one.metrics() for one in mine]),
                "intervals": self.intervals(model),
            }


def compared(scored: Sequence[Scored], question: Question) -> Iterator[Compared]:
    """Each horizon at each cut-off, and pooled where there are several."""
    for days in question.horizons_days:
        here = [one for one in scored if one.days == days]
        for moment in question.as_of_ms:
            at = [one for one in here if one.as_of_ms == moment]
            yield Compared.of(times.text(moment), days, at, question.draws)
        if len(question.as_of_ms) > 1:
            yield Compared.of(POOLED, days, here, question.draws)


def _with_means(
    drawn: Mapping[tuple[str, str], Values], scored: Sequence[Scored]
) -> dict[tuple[str, str], Values]:
    out = dict(drawn)
    labels: dict[str, set[str]] = {}
    for one in scored:
        labels.setdefault(one.model, set()).add(one.label)
    for model, names in labels.items():
        for metric in WITH_INTERVAL:
            out[model, metric] = np.mean([drawn[name, metric] for name in sorted(names)], axis=0)
    return out


def _mean(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Of each metric where it is defined at all of them."""
    out: dict[str, float | None] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        known = [value for value in values if value is not None]
        out[name] = float(np.mean(known)) if len(known) == len(values) else None
    return out
