"""Orders of users as the buy-till-you-die models count them: how many, how recent, how large.

Shapes: N users, one row each; x = repeat orders, t_x = age at the last order, T = age at the
cut-off, both since the first order and in weeks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scoring.judging.metrics import Values

DAY = 86_400_000
WEEK_DAYS = 7.0


@dataclass(frozen=True, slots=True)
class Orders:
    """What is known of N users at a cut-off; times in weeks, money in major units."""

    repeat: Values  # x
    recency: Values  # t_x
    age: Values  # T
    first: Values  # value of the first order
    total: Values  # value of all orders
    spent: Values  # everything, refunds taken off

    def __len__(self) -> int:
        return len(self.repeat)

    @property
    def buyer(self) -> npt.NDArray[np.bool_]:
        """Users with at least one order; the others have no first order to count from."""
        return self.total > 0


def orders(
    user: npt.NDArray[np.integer],
    time_ms: npt.NDArray[np.int64],
    value: Values,
    users: int,
    cutoff_ms: int,
    day_is_order: bool = True,
) -> Orders:
    """Fold value events before `cutoff_ms` into what the models need.

    With `day_is_order` the money of a user's day is summed and a day with a positive sum is one
    order (a return on the day of the order is taken off it, as a shop's clerk would); else each
    positive event is one. Ages count in whole days from day to day, fractions otherwise.

    >>> day = 86_400_000
    >>> made = orders(np.array([0, 0, 0]), np.array([0, 5, 7 * day]), np.array([9., -2., 5.]), 1,
    ...               14 * day)
    >>> made.repeat.tolist(), made.recency.tolist(), made.age.tolist(), made.total.tolist()
    ([1.0], [1.0], [2.0], [12.0])
    """
    known = time_ms < cutoff_ms
    user, time_ms, value = user[known], time_ms[known], value[known]
    spent = np.bincount(user, value, minlength=users)
    unit = time_ms // DAY * DAY if day_is_order else time_ms
    order = np.lexsort((unit, user))
    user, unit, value = user[order], unit[order], value[order]
    if day_is_order and len(user):
        start = np.flatnonzero(
            np.concatenate(([True], (user[1:] != user[:-1]) | (unit[1:] != unit[:-1])))
        )
        user, unit, value = user[start], unit[start], np.add.reduceat(value, start)
    paid = value > 0
    user, unit, value = user[paid], unit[paid], value[paid]
    count = np.bincount(user, minlength=users)
    last = np.cumsum(count) - 1
    first = last - count + 1
    some = count > 0
    zero = np.zeros(users)
    recency, age, first_value = zero.copy(), zero.copy(), zero.copy()
    week = WEEK_DAYS * DAY
    recency[some] = (unit[last[some]] - unit[first[some]]) / week
    age[some] = (cutoff_ms - unit[first[some]]) / week
    first_value[some] = value[first[some]]
    total = np.bincount(user, value, minlength=users)
    repeat = np.maximum(count - 1, 0).astype(np.float64)
    return Orders(
        repeat, recency, age, first_value, total.astype(np.float64), spent.astype(np.float64)
    )
