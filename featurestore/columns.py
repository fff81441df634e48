"""Events as columns: what the fold needs of an event, one packed record each.

A batch holds the events of one input partition, each source's in log order. Strings stay
out of the hot path: identity is a 128-bit hash of (source topic, type, event id), action and
category are 16-bit codes, money is integer millionths of the deployment's unit.

Shapes: N = events in a batch, U = distinct users in it. Times are integer milliseconds, UTC.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt

EVENT = np.dtype(
    [
        ("time_ms", "<i8"),  # event time
        ("record_ms", "<i8"),  # record timestamp in the log; decides what an erase record forgets
        ("id_hi", "<u8"),  # identity: blake2b-128 of source topic, type, event id
        ("id_lo", "<u8"),
        ("value_micro", "<i8"),  # value of the event by the value table, millionths, signed
        ("content", "<u4"),  # hash of what was said: other content under one id is a conflict
        ("action", "<u2"),  # code of the action (interaction), 0 = none; see events.action_code
        ("category", "<u2"),  # 16-bit hash of the category, 0 = none
        ("kind", "u1"),  # Kind
        ("source", "u1"),  # index of the source topic in the settings
        ("flags", "u1"),  # NO_ID, LATE, STEPS
        ("target", "u1"),  # code of the user addressed, 0 = none; see events.target_code
        ("words", "u1", (4,)),  # codes of what it was about, 0 = none; see events.word_codes
    ]
)

# Bytes of an event in the tail of a user of whom no words are folded.
BARE: int = EVENT.fields["words"][1] if EVENT.fields else 0

NO_ID = 1  # flag: came without event_id, never deduplicated
LATE = 2  # flag: late money, applied at clock - allowed lateness
STEPS = 4  # flag: this event steps the model's carry (a setting, decided when decoded)

NO_TIME = np.iinfo(np.int64).min  # "none" for a clock or a time that was never set


class Kind(IntEnum):
    """Event type as stored; the order also breaks ties of event time."""

    BROWSE = 0
    PURCHASE = 1
    INTERACTION = 2


class Outcome(IntEnum):
    """What became of one event in the fold."""

    APPLIED = 0
    APPLIED_LATE = 1  # late money, applied at the edge of the allowed lateness
    DUPLICATE = 2
    CONFLICT = 3  # known id, other content: a dead letter
    LATE = 4  # parked: a dead letter
    FUTURE = 5  # event time beyond record time + skew: a dead letter, moves no clock
    ERASED = 6  # produced before its user's erasure: dropped, counted
    BEFORE_CUT = 7  # already counted by the store's base: skipped, counted


@dataclass(frozen=True, slots=True)
class Erase:
    """A record with a key and a null value: forget what this user produced up to `record_ms`."""

    user: int  # row in EventBatch.users
    source: int
    record_ms: int


@dataclass(slots=True)
class EventBatch:
    """Decoded events of one partition, in log order per source, with their users.

    >>> EventBatch.empty().size
    0
    """

    users: list[str]  # (U,) distinct user ids, in order of first appearance
    user: npt.NDArray[np.int32]  # (N,) row in `users` of each event
    events: npt.NDArray[np.void]  # (N,) EVENT
    offset: npt.NDArray[np.int64]  # (N,) position in the source's log (line number in files)
    log_ms: npt.NDArray[np.int64]  # (N,) log time: when it reached the log
    erases: list[Erase] = field(default_factory=list)
    event_id: list[str | None] = field(default_factory=list)  # (N,) as sent, for `cause`
    # (N,) whom an interaction addressed, or empty: only training reads names, the fold reads codes
    target: list[str | None] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Number of events, erase records not counted."""
        return len(self.events)

    def before(self, cut_ms: int) -> EventBatch:
        """The same batch without the events at or after `cut_ms` of event time."""
        kept = np.flatnonzero(self.events["time_ms"] < cut_ms)
        return EventBatch(
            self.users,
            self.user[kept],
            self.events[kept],
            self.offset[kept],
            self.log_ms[kept],
            self.erases,
            [self.event_id[i] for i in kept],
            self.targets(kept),
        )

    def targets(self, at: npt.NDArray[np.integer]) -> list[str | None]:
        """`target` of the events at `at`; empty where none is known."""
        found = [self.target[i] for i in at.tolist()] if self.target else []
        return found if any(found) else []

    @classmethod
    def empty(cls) -> EventBatch:
        """A batch without events."""
        i8 = np.empty(0, np.int64)
        return cls([], np.empty(0, np.int32), np.empty(0, EVENT), i8, i8)


def split(batch: EventBatch, cut_ms: int) -> tuple[EventBatch, EventBatch]:
    """What reached the log before `cut_ms`, and the rest, each with the users that it names."""
    early = batch.log_ms < cut_ms
    return (
        _part(batch, early, [e for e in batch.erases if e.record_ms < cut_ms]),
        _part(batch, ~early, [e for e in batch.erases if e.record_ms >= cut_ms]),
    )


def _part(batch: EventBatch, keep: npt.NDArray[np.bool_], erases: list[Erase]) -> EventBatch:
    at = np.flatnonzero(keep)
    old = np.unique(np.concatenate([batch.user[at], [e.user for e in erases]]).astype(np.int64))
    new = np.full(len(batch.users), -1, np.int32)
    new[old] = np.arange(len(old))
    return EventBatch(
        [batch.users[u] for u in old.tolist()],
        new[batch.user[at]],
        batch.events[at],
        batch.offset[at],
        batch.log_ms[at],
        [replace(e, user=int(new[e.user])) for e in erases],
        [batch.event_id[i] for i in at.tolist()] if batch.event_id else [],
        batch.targets(at),
    )
