"""Value since install: what a young user will have been worth by a set age.

For a user of age a and a horizon of h days beyond it,

    lifetime[h] = max(0, spent so far + value expected in the h - a days that are left)

The model says what is expected within its horizons, not within h - a days. Expected values of
rising horizons are sums of increments that are never negative; each increment is spread evenly
over its own days, so between 0 and the first horizon, and from horizon to horizon, expected value
grows in a straight line. That is monotone in the days left, exact at every horizon, and needs
nothing that a document does not hold: a reader brings `lifetime` to a later time by the silence
curve as he does `values`, so the law of silence holds for it too (each increment is read with the
error of its ends). Age counts from the first event of any type. A user as old as the longest
horizon has no lifetime; one as old as a shorter one has none for that.

Shapes: U users, H horizons. Days as floats, money in major units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


def within(expected: npt.NDArray[np.floating], horizons: Sequence[int], days: Doubles) -> Doubles:
    """Value expected in the next `days` (U,) or (U, D), from `expected` (U, H): same shape.

    >>> said = np.array([[7.0, 30.0, 60.0]])
    >>> within(said, (7, 30, 90), np.array([[0.0, 3.5, 30.0, 60.0, 90.0]])).tolist()
    [[0.0, 3.5, 30.0, 45.0, 60.0]]
    """
    left = np.asarray(days, np.float64)
    begins = np.array([0, *horizons[:-1]], np.float64)
    spans = np.array(horizons, np.float64) - begins
    steps = np.diff(np.asarray(expected, np.float64), axis=1, prepend=0.0)  # (U, H)
    share = np.clip((left[..., None] - begins) / spans, 0, 1)  # (U, [D,] H)
    out: Doubles = (share * (steps if left.ndim == 1 else steps[:, None])).sum(axis=-1)
    return out


def lifetimes(
    spent: Doubles,
    age_days: Doubles,
    expected: npt.NDArray[np.floating],
    horizons: Sequence[int],
) -> Doubles:
    """Value from the first event to each horizon's age, (U, H); NaN where the user is older.

    >>> said = np.array([[7.0, 30.0, 60.0]])
    >>> lifetimes(np.array([100.0]), np.array([20.0]), said, (7, 30, 90)).tolist()
    [[nan, 110.0, 150.0]]
    """
    left = np.array(horizons, np.float64) - age_days[:, None]  # (U, H)
    worth = np.maximum(spent[:, None] + within(expected, horizons, left), 0.0)
    return np.where(left > 0, worth, np.nan)


def lifetime(spent: float, age_days: float, expected: Mapping[str, float]) -> dict[str, float]:
    """One user's, by name of horizon, shortest first: what a reader needs. Empty for the old.

    >>> lifetime(100.0, 20.0, {"d7": 7.0, "d30": 30.0, "d90": 60.0})
    {'d30': 110.0, 'd90': 150.0}
    """
    ends = [0.0, *(float(name[1:]) for name in expected)]
    values = [0.0, *expected.values()]

    def within_days(days: float) -> float:
        total = 0.0
        for begin, end, low, high in zip(ends, ends[1:], values, values[1:], strict=False):
            total += (high - low) * min(max((days - begin) / (end - begin), 0.0), 1.0)
        return total

    return {
        name: max(spent + within_days(end - age_days), 0.0)
        for name, end in zip(expected, ends[1:], strict=True)
        if end > age_days
    }
