"""Training rows as columns: what was known of a user at a cut-off, and what came after.

scoring.training.examples makes them of a log, point-in-time. Beside `features` stand `extra`
columns: those held (features.HELD), a user's edges where the setting `social` is on, and what is
known of neighbours (scoring.social) at the row's cut-off where the log has edges. `table` is the
latter at the log's clock, for the generation to carry. `words` are what a user's events were about
where the setting `interests` is on; what a model reads of them its own directions tell.

Shapes: N rows (a user at a cut-off), W cut-offs, H horizons, F features, S steps of Q sequences
end to end, T tokens. Times are integer milliseconds, UTC; value in major units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from featurestore.wording import counted
from scoring.inputs import FEATURE_NAMES, positions
from scoring.interests import INTEREST_NAMES, Directions
from scoring.interface import Floats
from scoring.social import NEAR_NAMES, Table

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]

LEAST_USERS = 10  # to learn a horizon from, or to judge by: deciles, and a ranking, want so many


@dataclass(frozen=True, slots=True)
class Examples:
    """Training rows of all users at all cut-offs."""

    users: list[str]
    cutoffs_ms: Ints  # (W,)
    horizons_s: tuple[int, ...]  # (H,)
    user: Ints  # (N,) index into users
    window: Ints  # (N,) index into cutoffs_ms
    features: Floats  # (N, F)
    value: Values  # (N, H) max(0, net value in the horizon)
    between: Bools  # (N, H) a positive value event since the horizon before
    mask: Bools  # (N, H) mature
    sequence: Ints  # (N,) index of the sequence whose prefix the row's carry has taken
    position: Ints  # (N,) steps taken of it
    tokens: Floats  # (S, T)
    starts: Ints  # (Q + 1,)
    seen_types: tuple[str, ...]
    log_start_ms: int
    clock_ms: int  # log clock: labels reach no further
    extra: Floats  # (N, E) columns beside `features`
    extra_names: tuple[str, ...]  # (E,)
    table: Table | None  # neighbours at the log's clock; None where the log has no edge
    words: Floats  # (N, WORDS) hashed words, rows of length 1 or 0; (N, 0) where not folded
    outcomes: Mapping[str, int]  # what became of the events of `users` in the fold, none left out

    def __len__(self) -> int:
        return len(self.user)

    def rows(self, keep: npt.NDArray[np.integer] | Bools) -> Examples:
        """Some of the rows; users and sequences stay as they are."""
        names = (
            *("user", "window", "features", "extra", "value", "between", "mask"),
            *("sequence", "position", "words"),
        )
        return replace(self, **{name: getattr(self, name)[keep] for name in names})

    @property
    def names(self) -> tuple[str, ...]:
        """All columns there are, those of `features` first."""
        return (*FEATURE_NAMES, *self.extra_names)

    @property
    def readable(self) -> frozenset[str]:
        """Columns that a generation may read of these rows."""
        words = INTEREST_NAMES if self.words.shape[1] else ()
        return frozenset((*self.names, *words, *NEAR_NAMES))

    def read(self, names: Sequence[str], directions: Directions | None = None) -> Floats:
        """(N, F) these columns, as a generation's manifest names them; none named: `features`.

        `directions`: the generation's, where it reads interests. Neighbours are 0 where the log
        has no edge.
        """
        if not names or tuple(names) == FEATURE_NAMES:
            return self.features
        there, parts = self.names, [self.features, self.extra]
        if directions is not None:
            there = (*there, *INTEREST_NAMES)
            parts.append(directions(self.words))
        if NEAR_NAMES[0] not in there:
            there = (*there, *NEAR_NAMES)
            parts.append(np.zeros((len(self), len(NEAR_NAMES)), np.float32))
        at = positions(there, names)
        every = np.concatenate(parts, axis=1)
        return every if at is None else every[:, at]

    @property
    def scarce(self) -> str:
        """Horizons of which too few users have a mature label, in words; empty if there is none.

        What a model says of such a horizon, nobody has taught it.
        """
        known = [len(np.unique(self.user[mature])) for mature in self.mask.T]
        few = [
            f"{users} for {counted(seconds // 86_400, 'day')}"
            for seconds, users in zip(self.horizons_s, known, strict=True)
            if users < LEAST_USERS
        ]
        return ", ".join(few)

    @property
    def active(self) -> Bools:
        """(N, H) at least one positive value event in the horizon."""
        return np.logical_or.accumulate(self.between, axis=1)

    def increments(self) -> Values:
        """(N, H) value between neighbouring horizons, never negative.

        A user who returns goods within the longer horizon has a smaller clipped net there; the
        running maximum keeps horizons ordered, the calibrated level takes back what it adds.
        """
        return np.diff(np.maximum.accumulate(self.value, axis=1), axis=1, prepend=0.0)
