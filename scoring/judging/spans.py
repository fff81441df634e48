"""Net value of users within spans of event time, each user with a span of his own.

Independent of the fold, as scoring.judging.history: exact in millionths. Times are integer
milliseconds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scoring.judging.history import MICRO, History
from scoring.judging.metrics import Values

Ints = npt.NDArray[np.int64]

_BITS = 43  # of a time since the log's first event: 278 years


class Spans:
    """All value events of a history, ready to be summed.

    >>> log = History({"ada": 0}, np.zeros(3, int), np.array([0, 5, 9]), np.array([0, 5, 9]),
    ...               np.array([9.0, -2.0, 4.0]))
    >>> of = Spans(log)
    >>> of.value(np.array([0, 0]), np.array([0, 1]), np.array([9, 10])).tolist()
    [7.0, 2.0]
    >>> of.orders_before(np.array([0]), np.array([9])).tolist()
    [1]
    """

    def __init__(self, history: History) -> None:
        micro = np.rint(history.value * MICRO).astype(np.int64)
        order = np.lexsort((history.time_ms, history.user))
        self._base = history.start_ms
        self._key = (history.user[order] << _BITS) + (history.time_ms[order] - self._base)
        self._sum = np.concatenate([[0], np.cumsum(micro[order])])
        self._orders = np.concatenate([[0], np.cumsum(micro[order] > 0)])

    def value(self, user: Ints, start_ms: Ints, end_ms: Ints) -> Values:
        """max(0, net value) of each user in [start, end)."""
        net = self._sum[self._at(user, end_ms)] - self._sum[self._at(user, start_ms)]
        return np.asarray(np.maximum(net, 0) / MICRO, np.float64)

    def orders_before(self, user: Ints, end_ms: Ints) -> Ints:
        """Events of positive value of each user before `end`."""
        first = self._at(user, np.full(len(user), self._base))
        return np.asarray(self._orders[self._at(user, end_ms)] - self._orders[first])

    def _at(self, user: Ints, time_ms: Ints) -> Ints:
        since = np.clip(time_ms - self._base, 0, (1 << _BITS) - 1)
        return np.searchsorted(self._key, (user.astype(np.int64) << _BITS) + since)
