"""Labels of training rows: what a user's value was after a cut-off.

The value events of a log are collected while it is folded; a label is the net value in event time
[c, c + horizon), clipped at zero, and whether a positive value event lies in it. Sums are exact, in
integer millionths.

Shapes: V value events, N rows (a user at a cut-off), H horizons. Times are integer milliseconds,
UTC; value in major units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]

MICRO = 1_000_000
_BITS = 42  # of a time since the first value event: 139 years


class ValueEvents:
    """Collects the value events of a log.

    >>> events = ValueEvents()
    >>> events.add(*(np.array(column) for column in ([0, 0], [5, 9], [MICRO, 2 * MICRO], [5, 9])))
    >>> value, between = events.labels(np.array([0]), np.array([5]), (1,), np.array([-1]))
    >>> value.tolist(), between.tolist()
    ([[3.0]], [[True]])
    """

    def __init__(self) -> None:
        self._added: list[tuple[Ints, Ints, Ints, Ints]] = []

    def add(self, user: Ints, time_ms: Ints, value_micro: Ints, record_ms: Ints) -> None:
        """Some events (V,), users by number."""
        self._added.append((user, time_ms, value_micro, record_ms))

    def labels(
        self, user: Ints, cut_ms: Ints, horizons_s: Sequence[int], erased_ms: Ints
    ) -> tuple[Values, Bools]:
        """Of rows (N,): value in each horizon (N, H), positive events since the one before (N, H).

        `erased_ms`, of each user: records up to it are forgotten.
        """
        none = np.empty(0, np.int64)
        joined = [np.concatenate(c) for c in zip(*self._added, strict=True)] or [none] * 4
        payer, time_ms, micro, record_ms = joined
        alive = record_ms > erased_ms[payer]
        sums = _Sums(payer[alive], time_ms[alive], micro[alive])
        edges = np.array([0, *horizons_s], np.int64) * 1000
        net = np.empty((len(user), len(horizons_s)), np.int64)
        between = np.empty(net.shape, bool)
        for h in range(len(horizons_s)):
            net[:, h] = sums.value(user, cut_ms, cut_ms + edges[h + 1])
            between[:, h] = sums.orders(user, cut_ms + edges[h], cut_ms + edges[h + 1]) > 0
        return np.maximum(net, 0) / MICRO, between


class _Sums:
    """Sums over spans of event time, by user, exact in millionths."""

    def __init__(self, user: Ints, time_ms: Ints, micro: Ints) -> None:
        order = np.lexsort((time_ms, user))
        user, time_ms, micro = user[order], time_ms[order], micro[order]
        self._base = int(time_ms.min()) if len(time_ms) else 0
        self._key = (user << _BITS) + (time_ms - self._base)
        self._sum = np.concatenate([[0], np.cumsum(micro)])
        self._orders = np.concatenate([[0], np.cumsum(micro > 0)])

    def _at(self, user: Ints, time_ms: Ints) -> Ints:
        span = np.clip(time_ms - self._base, 0, (1 << _BITS) - 1)
        return np.searchsorted(self._key, (user << _BITS) + span).astype(np.int64)

    def value(self, user: Ints, start_ms: Ints, end_ms: Ints) -> Ints:
        """Net value in [start, end)."""
        found: Ints = self._sum[self._at(user, end_ms)] - self._sum[self._at(user, start_ms)]
        return found

    def orders(self, user: Ints, start_ms: Ints, end_ms: Ints) -> Ints:
        """Positive value events in [start, end)."""
        found: Ints = self._orders[self._at(user, end_ms)] - self._orders[self._at(user, start_ms)]
        return found
