"""Training cut-offs of an evaluation: moments before the one asked about, labels whole by then.

Times are integer milliseconds, UTC; horizons whole days.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featurestore import times
from featurestore.wording import counted
from scoring.errors import ScoringError

DAY = 86_400_000
CUTOFFS = 8  # chosen from half-way to the last mature one

Ints = npt.NDArray[np.int64]


class BadQuestion(ScoringError):
    """The evaluation cannot be done as asked; the message says what can."""


def choose_cutoffs(start_ms: int, as_of_ms: int, days: int, delay_ms: int = 0) -> Ints:
    """Training cut-offs whose windows of `days` end, all labels arrived, by `as_of_ms`.

    From half-way to the last of them, evenly: earlier ones know too little of their users.

    >>> (choose_cutoffs(0, 273 * DAY, 91) // DAY).tolist()
    [91, 104, 117, 130, 143, 156, 169, 182]
    """
    last = as_of_ms - days * DAY - delay_ms
    if last - start_ms < 2 * DAY:
        raise BadQuestion(
            f"a window of {counted(days, 'day')} before {stamp(as_of_ms)} begins before the log"
            f" does ({stamp(start_ms)}): take a later --as-of or a shorter --horizon"
        )
    first = start_ms + (last - start_ms) // 2
    step = max((last - first) // (CUTOFFS - 1), DAY) // DAY * DAY
    return np.arange(last, first - 1, -step, dtype=np.int64)[::-1]


def stamp(time_ms: int) -> str:
    """For people: a date where it is one.

    >>> stamp(0), stamp(3_600_000)
    ('1970-01-01', '1970-01-01T01:00:00Z')
    """
    return times.text(time_ms).removesuffix("T00:00:00Z")
