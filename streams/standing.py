"""Does Redis list a user as his document says: the rank, and the date of his next score?

Both follow from the document: the rank is its headline, and the date is the moment at which its own
curve of silence has moved by the set share. A document says five significant digits, so where the
curve just reaches the share there may be a date or none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np

from featurestore import times
from featurestore.store import Listed

_SHARE = 1e-3  # what five digits leave open of a share between two of them
_DAY_MS = 86_400_000


def amiss(listed: Listed, share: float) -> Iterator[str]:
    """What of `listed` its document does not explain. share: `republish_share` of the settings."""
    if listed.document is None:
        if listed.rank is not None:
            yield "a rank without a document"
        if listed.due_ms is not None:
            yield "a due date without a document"
        return
    said = json.loads(listed.document)
    headline = said["headline"]
    expected = said["values"][headline]["expected"]
    if listed.rank is None or not math.isclose(listed.rank, expected, rel_tol=1e-4, abs_tol=1e-6):
        yield "rank"
    days, curve = np.array(said["silence"]["days"]), np.array(said["silence"]["expected"][headline])
    moved = np.abs(curve - curve[0]) / max(curve[0], 1e-9)
    if listed.due_ms is None:
        wrong = moved.max() > share + _SHARE
    else:
        after = (listed.due_ms - times.parse(said["as_of"])) / _DAY_MS
        there = abs(np.interp(after, days, curve) - curve[0]) / max(curve[0], 1e-9)
        first = moved[days < after].max(initial=0) < share + _SHARE
        wrong = not (0 < after <= days[-1] and first and abs(there - share) < _SHARE)
    if wrong:
        yield "due date"
