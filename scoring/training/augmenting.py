"""What an epoch sees otherwise than it was: events passed over, times moved, cut-offs drawn.

Settings `training.event_dropout`, `time_jitter_days` and `cutoff_dropout`, all 0: whether they help
on a log is to be measured (docs/accuracy.md). They touch what trains, never what stops training,
calibrates or judges. They change the steps of the carry and which rows are looked at; features
stay what the fold says, so a net without a carry feels `cutoff_dropout` alone.

Passed over means never there: the gap of the next step reaches back to the last one that is left,
as the fold would have told it. A step moved before its predecessor has no gap; their order stays.

Shapes: N rows, S steps of all users end to end, T tokens. `ranks` (S,) number each user's steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.vector import TOKENS
from scoring.interface import Floats
from scoring.settings import TrainingSettings

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Days = npt.NDArray[np.float64]

GAP, FIRST = TOKENS.index("gap"), TOKENS.index("first")
HOUR, WEEKDAY = TOKENS.index("hour_sin"), TOKENS.index("weekday_sin")  # their cosines follow


@dataclass(frozen=True, slots=True)
class Augment:
    """Draws from a generator of its own: the order of users is what it is without."""

    events: float  # share passed over
    jitter_days: float  # standard deviation
    cutoffs: float  # share passed over
    draw: np.random.Generator

    @classmethod
    def of(cls, settings: TrainingSettings) -> Augment | None:
        """None where nothing is asked for."""
        asked = (settings.event_dropout, settings.time_jitter_days, settings.cutoff_dropout)
        return cls(*asked, np.random.default_rng([settings.seed, 1])) if any(asked) else None

    def rows(self, sequence: Ints) -> Bools:
        """(N,) those looked at, at least one of each sequence; `sequence` (N,) ascends."""
        drawn = self.draw.random(len(sequence))
        begins = np.flatnonzero(np.diff(sequence, prepend=-1))
        highest = np.maximum.reduceat(drawn, begins) if len(begins) else drawn
        size = np.diff(np.append(begins, len(sequence)))
        kept: Bools = (drawn >= self.cutoffs) | (drawn == np.repeat(highest, size))
        return kept

    def steps(self, tokens: Floats, ranks: Ints) -> tuple[Floats, Bools]:
        """Tokens (M, T) of the steps that are left, and which of (S,) those are."""
        if self.jitter_days:
            tokens = moved(tokens, ranks, self.draw.normal(0, self.jitter_days, len(ranks)))
        kept = self.draw.random(len(ranks)) >= self.events
        return (without(tokens, ranks, kept) if self.events else tokens), kept


def moved(tokens: Floats, ranks: Ints, by: Days) -> Floats:
    """Every step `by` (S,) days later or earlier; the order stays."""
    out = tokens.copy()
    later = ranks > 0
    days = np.expm1(tokens[:, GAP].astype(np.float64)) + by - np.roll(by, 1)
    out[:, GAP] = np.where(later, np.log1p(np.maximum(days, 0)), 0)
    hour = np.arctan2(tokens[:, HOUR], tokens[:, HOUR + 1]) / (2 * np.pi) % 1  # of the day
    midnights = np.floor(hour + by)
    for sine, turns in ((HOUR, by), (WEEKDAY, midnights / 7)):
        angle = np.arctan2(tokens[:, sine], tokens[:, sine + 1]) + turns * (2 * np.pi)
        out[:, sine], out[:, sine + 1] = np.sin(angle), np.cos(angle)
    return out


def without(tokens: Floats, ranks: Ints, kept: Bools) -> Floats:
    """Steps `kept` (S,), as if there had been no others."""
    at = np.cumsum(np.expm1(tokens[:, GAP].astype(np.float64)))[kept]
    user = np.cumsum(ranks == 0)[kept]
    out = tokens[kept]
    later = user == np.roll(user, 1)
    later[:1] = False
    out[:, GAP] = np.where(later, np.log1p(np.maximum(at - np.roll(at, 1), 0)), 0)
    out[:, FIRST] = ~later
    return out
