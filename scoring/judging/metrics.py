"""How well values rank users and how well they hit the level, in numpy.

`ngini` and `dmape` are those of google/lifetime_value (Apache-2.0, lifetime_value/metrics.py):
model Gini over oracle Gini on the cumulative gain, and the mean absolute percentage error of the
means of ten equal buckets of the prediction. Two things are settled here that pandas leaves open:
tied predictions share what they capture (pandas sorts them in no particular order), and equal
bucket edges are merged (`pandas.qcut` raises).

Shapes: N users, one row each; values in major units. A metric that is not defined for its input
(nobody spent, one class only) is NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]  # (N,)
Metric = Callable[[Values, Values], float]

NAN = float("nan")


class Gain:
    """Cumulative gain of `actual` along falling `by`, kept sorted for many weightings.

    `weight` (N,) counts how often each row is drawn; the bootstrap needs thousands of draws of
    the same rows and sorts them once.
    """

    def __init__(self, actual: Values, by: Values) -> None:
        self._order = np.argsort(-by, kind="stable")
        along = by[self._order]
        self._starts = np.flatnonzero(np.concatenate(([True], along[1:] != along[:-1])))
        self._actual = actual[self._order]

    def _groups(self, weight: Values | None) -> tuple[Values, Values]:
        """Rows and value of each group of tied predictions, best first."""
        w = np.ones(len(self._actual)) if weight is None else weight[self._order]
        return np.add.reduceat(w, self._starts), np.add.reduceat(w * self._actual, self._starts)

    def gini(self, weight: Values | None = None) -> float:
        """2 x mean of the cumulative share - 1, as `gini_from_gain` of google/lifetime_value."""
        rows, value = self._groups(weight)
        total, n = value.sum(), rows.sum()
        if not total > 0:
            return NAN
        before = np.cumsum(value) - value
        # within a group of ties every order is as likely: the expected partial sums
        area = np.sum(rows * before + value * (rows + 1) / 2)
        return float(2 * area / total / n - 1)

    def top(self, share: float, weight: Values | None = None) -> float:
        """Part of the whole value that the first `share` of the rows holds."""
        rows, value = self._groups(weight)
        total, n = value.sum(), rows.sum()
        if not total > 0:
            return NAN
        reached = np.concatenate(([0.0], np.cumsum(rows)))
        return float(np.interp(share * n, reached, np.concatenate(([0.0], np.cumsum(value))))
                     / total)  # fmt: skip


def ngini(actual: Values, predicted: Values) -> float:
    """Gini of the model's ranking over the Gini of the perfect one.

    >>> ngini(np.array([0.0, 1.0, 5.0]), np.array([0.1, 0.2, 0.3]))
    1.0
    >>> round(ngini(np.array([0.0, 1.0, 5.0]), np.array([0.3, 0.3, 0.3])), 3)
    0.375
    """
    best = Gain(actual, actual).gini()
    return Gain(actual, predicted).gini() / best if best > 0 else NAN


def top_share(actual: Values, predicted: Values, share: float) -> float:
    """Part of all that was spent that the first `share` of users by prediction spent.

    >>> top_share(np.array([8.0, 1.0, 1.0, 0.0]), np.array([4.0, 3.0, 2.0, 1.0]), 0.5)
    0.9
    """
    return Gain(actual, predicted).top(share)


def dmape(actual: Values, predicted: Values, buckets: int = 10) -> float:
    """Mean over deciles of the prediction of |mean predicted - mean actual| / mean actual.

    A bucket in which nobody spent has no percentage and is left out (pandas' mean would make
    it infinite). With fewer distinct edges than buckets the equal ones are merged.

    >>> dmape(np.arange(1.0, 101.0), 1.5 * np.arange(1.0, 101.0)).__round__(3)
    0.5
    """
    bucket = quantile_buckets(predicted, buckets)
    rows = np.bincount(bucket)
    made, said = np.bincount(bucket, actual), np.bincount(bucket, predicted)
    spent = (rows > 0) & (made > 0)
    return float(np.mean(np.abs(said[spent] - made[spent]) / made[spent])) if spent.any() else NAN


def ranks(values: Values) -> Values:
    """Ranks from 1, ties at their mean.

    >>> ranks(np.array([5.0, 1.0, 5.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    out: Values = (last - (count - 1) / 2)[inverse]
    return out


def spearman(actual: Values, predicted: Values) -> float:
    """Correlation of the ranks.

    >>> round(spearman(np.array([1.0, 2.0, 9.0]), np.array([3.0, 4.0, 5.0])), 6)
    1.0
    """
    a, b = ranks(actual), ranks(predicted)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else NAN


def bias(actual: Values, predicted: Values) -> float:
    """Predicted over actual total: 1 is right, .8 promises a fifth too little.

    >>> bias(np.array([10.0, 0.0]), np.array([4.0, 4.0]))
    0.8
    """
    total = float(actual.sum())
    return float(predicted.sum()) / total if total > 0 else NAN


def mae(actual: Values, predicted: Values) -> float:
    """Mean absolute error; rewards under-prediction on data that is mostly zero."""
    return float(np.mean(np.abs(actual - predicted)))


def rmse(actual: Values, predicted: Values) -> float:
    """Root mean square error; a few large users decide it."""
    return float(np.sqrt(np.mean(np.square(actual - predicted))))


def auc(active: npt.NDArray[np.bool_], score: Values) -> float:
    """Chance that an active user scores above an inactive one, ties half.

    >>> auc(np.array([True, False, False]), np.array([0.9, 0.1, 0.9]))
    0.75
    """
    n1 = int(active.sum())
    n0 = len(active) - n1
    if not n1 or not n0:
        return NAN
    return float((ranks(score)[active].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def brier(active: npt.NDArray[np.bool_], p_active: Values) -> float:
    """Mean squared error of the probability.

    >>> brier(np.array([True, False]), np.array([0.5, 0.5]))
    0.25
    """
    return float(np.mean(np.square(p_active - active)))


def ece(active: npt.NDArray[np.bool_], p_active: Values, buckets: int = 10) -> float:
    """Expected calibration error: mean distance of P(active) from how many then were.

    Over ten buckets of equally many users along the probability, each weighted by its users;
    equal edges are merged. Source: Naeini, Cooper & Hauskrecht 2015, with buckets of equal mass
    (Nixon et al. 2019, arXiv:1904.01685), since most probabilities lie near 0.

    >>> ece(np.array([True, False]), np.array([0.5, 0.5])), ece(np.array([True]), np.array([0.75]))
    (0.0, 0.25)
    """
    if not len(active):
        return NAN
    bucket = quantile_buckets(p_active, buckets)
    gap = np.bincount(bucket, p_active) - np.bincount(bucket, active)
    return float(np.abs(gap).sum() / len(active))


def quantile_buckets(values: Values, buckets: int = 10) -> npt.NDArray[np.int64]:
    """(N,) bucket of each value, as `pandas.qcut` with equal edges merged; 0 holds the least.

    >>> quantile_buckets(np.array([3.0, 1.0, 2.0, 2.0]), 2).tolist()
    [1, 0, 0, 0]
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, buckets + 1)))
    # (low, high] and the lowest with its edge
    return np.clip(np.searchsorted(edges, values, side="left") - 1, 0, None)


def cover80(actual: Values, p10: Values, p90: Values) -> float:
    """Share of the spenders whose value lies in [p10, p90] of "if active"; .8 is right.

    >>> cover80(np.array([0.0, 5.0, 50.0]), np.full(3, 1.0), np.full(3, 10.0))
    0.5
    """
    spent = actual > 0
    if not spent.any():
        return NAN
    return float(np.mean((actual[spent] >= p10[spent]) & (actual[spent] <= p90[spent])))


def top10(actual: Values, predicted: Values) -> float:
    """`top_share` of the first tenth."""
    return top_share(actual, predicted, 0.1)


def top20(actual: Values, predicted: Values) -> float:
    """`top_share` of the first fifth."""
    return top_share(actual, predicted, 0.2)


def number(value: float | None) -> float | None:
    """JSON has no NaN: what is not defined is null."""
    return float(value) if value is not None and np.isfinite(value) else None


METRICS: dict[str, Metric] = {
    "ngini": ngini,
    "spearman": spearman,
    "top10": top10,
    "top20": top20,
    "dmape": dmape,
    "bias": bias,
    "mae": mae,
    "rmse": rmse,
}
