"""Is one model better than another? Paired bootstrap, clustered by user.

Both models are judged on the same draw of users, so that what makes a sample of users hard hits
both. A user who stands in several windows (rolling cut-offs) is drawn with all of them, since
his windows are no independent evidence. Source: Efron & Tibshirani 1993, chapters 8 and 16.

Shapes: N rows (a user in a window), W windows. The metric is taken within each window and
averaged, never over rows of several windows: levels differ between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scoring.metrics import METRICS, NAN, Gain, Values


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
    names, cluster = np.unique(users, return_inverse=True)
    rows = _rows_of(np.zeros(len(actual), np.int64) if windows is None else windows)
    pairs = [
        (_prepared(metric, actual[i], a[i]), _prepared(metric, actual[i], b[i]), cluster[i])
        for i in rows
    ]

    def delta(times: Values | None) -> float:
        parts = []
        for of_a, of_b, who in pairs:
            weight = None if times is None else times[who]
            parts.append(of_a(weight) - of_b(weight))
        return float(np.mean(parts)) if parts else NAN

    rng = np.random.default_rng(seed)
    n = len(names)
    drawn = np.array(
        [
            delta(np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64))
            for _ in range(draws)
        ]
    )
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Difference(delta(None), NAN, NAN)
    outside = (1 - confidence) / 2
    low, high = np.quantile(drawn, (outside, 1 - outside))
    return Difference(delta(None), float(low), float(high))


def _rows_of(windows: npt.NDArray[np.integer]) -> list[npt.NDArray[np.intp]]:
    return [np.flatnonzero(windows == w) for w in np.unique(windows)]


def _prepared(metric: str, actual: Values, predicted: Values) -> Weighted:
    """The metric as a function of how often each row was drawn; gains are sorted once."""
    if metric == "ngini":
        model, oracle = Gain(actual, predicted), Gain(actual, actual)
        return lambda weight: model.gini(weight) / oracle.gini(weight)
    if metric in ("top10", "top20"):
        gain, share = Gain(actual, predicted), 0.1 if metric == "top10" else 0.2
        return lambda weight: gain.top(share, weight)
    plain = METRICS[metric]

    def drawn(weight: Values | None) -> float:
        if weight is None:
            return plain(actual, predicted)
        rows = np.repeat(np.arange(len(actual)), weight.astype(np.int64))
        return plain(actual[rows], predicted[rows])

    return drawn
