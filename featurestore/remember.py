"""Identities that deduplication needs beyond the tail.

`ids`: events that left the tail while a repeat of them could still come in time (beyond the tail
cap, or from a source that is behind the frontier because it had been idle), with the time at
which they were folded. `ring`: the latest value events with their own event times, against late
repeats of money. Both per user and source, ordered by source, time and id, the latest `cap`.

Shapes: U users, M identities.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featurestore.rows import Index, Records, Rows, joined, merge_order, pick, starts_of
from featurestore.state import SEEN

_TIES = ("id_hi", "id_lo", "content", "record_ms")


def seen(events: Records, time_ms: npt.NDArray[np.int64]) -> Records:
    """Events (M,) as remembered, with these times."""
    out = np.zeros(len(events), SEEN)
    for name in ("record_ms", "id_hi", "id_lo", "content", "source"):
        out[name] = events[name]
    out["time_ms"] = time_ms
    return out


def latest(held: Rows, owner: Index, more: Records, cap: int) -> Rows:
    """`held` and `more` (M,) of rows `owner` (M,), the latest `cap` per row and source."""
    values = joined([held.values, more])
    owner = np.concatenate([held.owner, owner])
    # Sources are below 256.
    pair = owner * 256 + values["source"]
    order = merge_order(pair, np.ascontiguousarray(values["time_ms"]), _TIES, values)
    pair = pair[order]
    # Rank from the end of each row and source.
    ends = np.flatnonzero(np.append(pair[1:] != pair[:-1], True))
    numbers = np.diff(ends, prepend=-1)
    rank = np.repeat(ends, numbers) - np.arange(len(pair))
    kept = order[rank < cap]
    return Rows(
        pick(values, kept), starts_of(np.bincount(owner[kept], minlength=len(held.starts) - 1))
    )
