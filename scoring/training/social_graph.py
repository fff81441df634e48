"""The social graph of a log, and what it says of each user's neighbours at an instant.

One hop of a graph convolution: with W the decayed edges of both directions between users, and
D = 1 + row sums of W, the columns of neighbours are

    D^-1/2  W  D^-1/2  X

where X are the neighbours' decayed value, orders and activity, as the fold encodes them. That is
the propagation of Kipf & Welling (arXiv:1609.02907) without its diagonal, which is the user's own
part and live; computed once for all users, a linear model can read it (Wu et al. 2019,
arXiv:1902.07153).

Point-in-time: an instant sees the edges that had arrived in the log before it, and X of then.
An erasure forgets the edges that the user made, all of a cell where it cannot tell them apart.

Memory: one cell for each (user, user, cut-off between which they came), not one for each event.
Offline only: scipy is in the extras `train` and `evaluate`.

Shapes: P nodes (users who act or are addressed), E cells, N users with features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.features import FEATURES
from scoring.interface import Floats

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

LARGEST = 2_000_000  # raw edges before they are added up

_AT = {feature.name: i for i, feature in enumerate(FEATURES)}
_KINDS = ("browse", "purchase", "interaction")
_VALUES = [_AT[f"decayed_{kind}_value_2"] for kind in _KINDS]
_COUNTS = [_AT[f"decayed_{kind}s_2"] for kind in _KINDS]
_ORDERS = _AT["decayed_orders_2"]


def worth(features: Floats) -> Floats:
    """(N, 3) decayed value, orders and activity, logarithms, of encoded features (N, F)."""
    out = np.empty((len(features), 3), np.float32)
    values = features[:, _VALUES].astype(np.float64)
    total = np.copysign(np.expm1(np.abs(values)), values).sum(axis=1)
    out[:, 0] = np.copysign(np.log1p(np.abs(total)), total)
    out[:, 1] = features[:, _ORDERS]
    out[:, 2] = np.log1p(np.expm1(features[:, _COUNTS].astype(np.float64)).sum(axis=1))
    return out


class Edges:
    """Collects the edges of a log while it is folded; every partition adds to the same one."""

    def __init__(self, cutoffs_ms: Ints, half_life_ms: int) -> None:
        """`cutoffs_ms` ascending: instants that will be asked for."""
        self._cutoffs = cutoffs_ms
        self._half_life_ms = half_life_ms
        self._node: dict[str, int] = {}
        self._origin_ms: int | None = None  # weights are of this instant, all of them
        self._raw: list[tuple[Ints, Ints, Ints, Doubles, Ints]] = []
        self._waiting = 0

    def __len__(self) -> int:
        return len(self._node)

    @property
    def names(self) -> list[str]:
        """(P,) users of the graph."""
        return list(self._node)

    def add(
        self,
        sources: Sequence[str],
        targets: Sequence[str],
        time_ms: Ints,
        log_ms: Ints,
        record_ms: Ints,
    ) -> None:
        """Edges in the order of their partition's log."""
        if not len(sources):
            return
        node = self._node
        a = np.array([node.setdefault(name, len(node)) for name in sources], np.int64)
        b = np.array([node.setdefault(name, len(node)) for name in targets], np.int64)
        if self._origin_ms is None:
            self._origin_ms = int(time_ms[0])
        weight = np.exp2((time_ms - self._origin_ms) / self._half_life_ms)
        window = np.searchsorted(self._cutoffs, log_ms, side="right")
        self._raw.append((a, b, window, weight, record_ms.astype(np.int64)))
        self._waiting += len(a)
        if self._waiting > LARGEST:
            self._raw, self._waiting = [self._cells()], 0

    def _cells(self) -> tuple[Ints, Ints, Ints, Doubles, Ints]:
        """Everything so far, one cell for each pair and window: weights, least record time."""
        a, b, window, weight, record = (np.concatenate(x) for x in zip(*self._raw, strict=True))
        order = np.lexsort((window, b, a))
        a, b, window = a[order], b[order], window[order]
        new = np.ones(len(a), bool)
        new[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1]) | (window[1:] != window[:-1])
        at = np.flatnonzero(new)
        return (
            a[at],
            b[at],
            window[at],
            np.add.reduceat(weight[order], at),
            np.minimum.reduceat(record[order], at),
        )

    def near(
        self,
        at_ms: int,
        users: Sequence[str],
        worth: Floats,
        erased_ms: Mapping[str, int],
    ) -> Floats:
        """(P, G) columns of social.NEAR at a cut-off or the log's end, of all names in order.

        `users` (N,) and their `worth` (N, 3) at that instant; `erased_ms`: of whom records up to
        when are forgotten.
        """
        from scipy import sparse

        n = len(self._node)
        if not self._raw:
            return np.zeros((n, 5), np.float32)
        self._raw, self._waiting = [self._cells()], 0
        a, b, window, weight, record = self._raw[0]
        seen = window <= np.searchsorted(self._cutoffs, at_ms, side="left")
        if erased_ms:
            until = np.full(n, np.iinfo(np.int64).min)
            for name, marker in erased_ms.items():
                if name in self._node:
                    until[self._node[name]] = marker
            seen &= record > until[a]
        a, b, weight = a[seen], b[seen], weight[seen]
        assert self._origin_ms is not None
        weight = weight * 2.0 ** (-(at_ms - self._origin_ms) / self._half_life_ms)
        x = np.zeros((n, 3))
        rows = np.array([self._node.get(name, -1) for name in users], np.int64)
        x[rows[rows >= 0]] = worth[rows >= 0]

        directed: Any = sparse.coo_array((weight, (a, b)), shape=(n, n)).tocsr()
        both: Any = (directed + directed.T).tocsr()
        scale = 1 / np.sqrt(1 + both.sum(axis=1))
        out = np.empty((n, 5), np.float32)
        out[:, :3] = scale[:, None] * (both @ (scale[:, None] * x))
        out[:, 3] = np.log1p(np.diff(both.indptr))
        out[:, 4] = np.log1p(np.diff(directed.T.tocsr().indptr))
        return out
