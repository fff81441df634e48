"""Is the first model named better than the others? At each cut-off, and over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from featurestore import times
from scoring.bootstrap import paired_bootstrap
from scoring.question import Question
from scoring.scored import Scored, number

COMPARED = ("ngini", "top20", "mae")
POOLED = "pooled"


def comparisons(scored: Sequence[Scored], question: Question) -> list[dict[str, Any]]:
    """The first model named against each other; users are drawn with all of their windows."""
    out: list[dict[str, Any]] = []
    first, *others = question.models
    for other in others:
        for days in question.horizons_days:
            each = [(times.text(t), {t}) for t in question.as_of_ms]
            pooled = [(POOLED, set(question.as_of_ms))] if len(question.as_of_ms) > 1 else []
            for name, moments in [*each, *pooled]:
                a = [s for s in scored if _is(s, first, days, moments)]
                b = [s for s in scored if _is(s, other, days, moments)]
                out += [
                    {"a": first, "b": other, "as_of": name, "horizon_days": days, **found}
                    for found in _compare(a, b, question.draws)
                ]
    return out


def _compare(
    a: Sequence[Scored], b: Sequence[Scored], draws: int
) -> Iterator[dict[str, float | str | None]]:
    """Every seed of a against every seed of b, as windows of the same users."""
    pairs = [(x, y) for x in a for y in b if x.as_of_ms == y.as_of_ms]
    if not pairs:
        return
    actual = np.concatenate([x.actual for x, _ in pairs])
    said_a = np.concatenate([x.forecast.expected for x, _ in pairs])
    said_b = np.concatenate([y.forecast.expected for _, y in pairs])
    users = np.concatenate([x.user for x, _ in pairs])
    windows = np.repeat(np.arange(len(pairs)), [len(x.user) for x, _ in pairs])
    for metric in COMPARED:
        found = paired_bootstrap(metric, actual, said_a, said_b, users, windows, draws)
        yield {
            "metric": metric,
            "delta": number(found.delta),
            "low": number(found.low),
            "high": number(found.high),
        }


def _is(one: Scored, model: str, days: int, moments: set[int]) -> bool:
    return one.model == model and one.days == days and one.as_of_ms in moments
