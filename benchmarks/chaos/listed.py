"""Where Redis lists a user beside his document: the ranking, and the date of his next score."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

from featurestore import times

_DAY_MS = 86_400_000
_DIGITS = 1e-3  # of a share between two numbers of five digits


@dataclass(frozen=True, slots=True)
class Listed:
    """None: not there."""

    rank: float | None = None
    due_ms: float | None = None  # when silence is to move the value

    def amiss(self, document: bytes | None, share: float) -> Iterator[str]:
        """What the document of a user who lives does not explain.

        The rank is its headline; the date is when its own curve of silence has moved by `share`. A
        document says five digits: where the curve just reaches `share`, there may be a date or not.
        """
        if document is None:
            return  # counted as an output
        said = json.loads(document)
        expected = said["values"][said["headline"]]["expected"]
        if self.rank is None or not math.isclose(self.rank, expected, rel_tol=1e-4, abs_tol=1e-6):
            yield "rank"
        curve = said["silence"]["expected"][said["headline"]]
        moved = [abs(value - curve[0]) / max(curve[0], 1e-9) for value in curve]
        if self.due_ms is None:
            wrong = max(moved) > share + _DIGITS
        else:
            days = (self.due_ms - times.parse(said["as_of"])) / _DAY_MS
            at = bisect.bisect_left(said["silence"]["days"], days)
            inside = 0 < at < len(moved)
            # The curve has moved that far by the knot after the date, and by none before it.
            wrong = not inside or max(moved[:at]) > share + _DIGITS or moved[at] < share - _DIGITS
        if wrong:
            yield "due date"
