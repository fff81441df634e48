"""Is one model better than another? Paired bootstrap, clustered by user.

Both models are judged on the same draw of users, so that what makes a sample of users hard hits
both. A user who stands in several windows (rolling cut-offs) is drawn with all of them, since
his windows are no independent evidence. Source: Efron & Tibshirani 1993, chapters 8 and 16.

Shapes: N rows (a user in a window), W windows. The metric is taken within each window and
averaged, never over rows of several windows: levels differ between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scoring.judging.metrics import METRICS, NAN, Gain, Values


class Difference(NamedTuple):
    """Metric of a minus metric of b, and its interval."""

    delta: float
    low: float
    high: float


Weighted = Callable[[Values | None], float]


def paired_bootstrap(
    metric: str,
    actual: Values,
    a: Values,
    b: Values,
    users: npt.NDArray[np.integer],
    windows: npt.NDArray[np.integer] | None = None,
    draws: int = 400,
    seed: int = 0,
    confidence: float = 0.95,
) -> Difference:
    """Draw users with replacement, `draws` times, and compare the two predictions each time.

    confidence: of the two-sided interval.

    >>> rng = np.random.default_rng(1)
    >>> y = rng.exponential(size=300)
    >>> good, bad = y + rng.normal(size=300), rng.normal(size=300)
    >>> found = paired_bootstrap("ngini", y, good, bad, np.arange(300), draws=100)
    >>> found.low < found.delta < found.high, found.low > 0
    (True, True)
    """
    at = [np.arange(len(actual))] if windows is None else _rows_of(windows)
    parts = [Part(actual[i], users[i], {"a": a[i], "b": b[i]}) for i in at]
    if not parts:
        return Difference(NAN, NAN, NAN)
    found = bootstrap(parts, (metric,), draws, seed)
    return found.difference("a", "b", metric, confidence)


class Part(NamedTuple):
    """One window: what its users spent, and what each model said of them."""

    actual: Values  # (N,)
    users: npt.NDArray[np.integer]  # (N,)
    said: Mapping[str, Values]  # by model, (N,) each


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """Each metric of each model, mean over windows: as it is, and in each draw of users."""

    values: Mapping[tuple[str, str], Values]  # (model, metric) -> (1 + draws,), first as it is

    def interval(self, model: str, metric: str, confidence: float = 0.95) -> Difference:
        """A metric and its interval."""
        return _interval(self.values[model, metric], confidence)

    def difference(self, a: str, b: str, metric: str, confidence: float = 0.95) -> Difference:
        """Metric of a minus metric of b, on the same draws."""
        return _interval(self.values[a, metric] - self.values[b, metric], confidence)


def bootstrap(
    parts: Sequence[Part], metrics: Sequence[str], draws: int = 400, seed: int = 0
) -> Bootstrapped:
    """Draw users with replacement, `draws` times, each with all windows that he stands in.

    One weighting a draw serves all models and metrics, so that any two of them can be paired.
    """
    names, cluster = np.unique(np.concatenate([part.users for part in parts]), return_inverse=True)
    ends = np.cumsum([len(part.users) for part in parts])
    who = np.split(cluster, ends[:-1])
    rng, n = np.random.default_rng(seed), len(names)
    keys = [(model, metric) for model in parts[0].said for metric in metrics]
    prepared: list[dict[tuple[str, str], Weighted]] = []
    for part in parts:
        oracle = _Sorted(part.actual, part.actual)
        sorted_by = {model: _Sorted(part.actual, said) for model, said in part.said.items()}
        prepared.append(
            {(m, k): _prepared(k, part.actual, part.said[m], sorted_by[m], oracle) for m, k in keys}
        )
    out = {key: np.empty(1 + draws) for key in keys}
    for draw in range(1 + draws):
        times = None
        if draw:
            times = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
        weights = [None if times is None else times[rows] for rows in who]
        for key in keys:
            found = [of[key](weight) for of, weight in zip(prepared, weights, strict=True)]
            out[key][draw] = np.mean(found)
    return Bootstrapped(out)


def _interval(values: Values, confidence: float) -> Difference:
    drawn = values[1:][np.isfinite(values[1:])]
    if not len(drawn):
        return Difference(float(values[0]), NAN, NAN)
    outside = (1 - confidence) / 2
    low, high = np.quantile(drawn, (outside, 1 - outside))
    return Difference(float(values[0]), float(low), float(high))


def _rows_of(windows: npt.NDArray[np.integer]) -> list[npt.NDArray[np.intp]]:
    return [np.flatnonzero(windows == w) for w in np.unique(windows)]


class _Sorted(Gain):
    """A ranking that several metrics look at: weighted once a draw, not once a metric."""

    def __init__(self, actual: Values, by: Values) -> None:
        super().__init__(actual, by)
        self._drawn: tuple[Values | None, tuple[Values, Values]] | None = None

    def _groups(self, weight: Values | None) -> tuple[Values, Values]:
        if self._drawn is None or self._drawn[0] is not weight:
            self._drawn = weight, super()._groups(weight)
        return self._drawn[1]


def _prepared(
    metric: str, actual: Values, predicted: Values, ranking: _Sorted, oracle: _Sorted
) -> Weighted:
    """The metric as a function of how often each row was drawn; rankings are sorted once."""
    if metric == "ngini":
        return lambda weight: ranking.gini(weight) / oracle.gini(weight)
    if metric in ("top10", "top20"):
        share = 0.1 if metric == "top10" else 0.2
        return lambda weight: ranking.top(share, weight)
    if metric == "bias":
        return lambda weight: _ratio(predicted, actual, weight)
    if metric == "mae":
        error = np.abs(actual - predicted)
        return lambda weight: _ratio(error, np.ones(len(error)), weight)
    plain = METRICS[metric]

    def drawn(weight: Values | None) -> float:
        if weight is None:
            return plain(actual, predicted)
        rows = np.repeat(np.arange(len(actual)), weight.astype(np.int64))
        return plain(actual[rows], predicted[rows])

    return drawn


def _ratio(over: Values, under: Values, weight: Values | None) -> float:
    up, down = (over.sum(), under.sum()) if weight is None else (weight @ over, weight @ under)
    return float(up / down) if down > 0 else NAN
