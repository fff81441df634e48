"""What is kept of a user: a settled side, a tail of recent events, and the head over both.

STATE is one side: everything folded from a user's events, fixed in size. `settled` holds the
events that nothing can change any more, the tail those after them, in fold order; the head is
the fold of both. Without a tail the head is the settled side, bit by bit, and is not stored.

Decayed sums are kept in forward form (Cormode et al. 2009, "Forward decay"): an event at time t
adds 2^(t / h - k), where k is the number of whole half-lives h up to the side's last event. So
events in any order only add, and when k grows the sums shrink by a power of two, which loses no
bit: the result does not depend on where batches end. The sum as of a time T is the kept number
times 2^(k - T / h).

Shapes: U users. Times are integer milliseconds, UTC, NO_TIME where there is none; money is
integer millionths; decayed values are in major units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.columns import EVENT, NO_TIME
from featurestore.events import WORDS
from featurestore.rows import Rows, joined, pick

# Columns of STATE["decayed"], once per half-life.
CHANNELS = (
    *("browse", "purchase", "interaction", "orders"),  # counts of events
    *("value_browse", "value_purchase", "value_interaction"),
)
ORDERS, VALUES = 3, 4  # where the column of orders and those of value stand
# Columns of STATE["rhythm"], at the middle half-life.
RHYTHM = ("sessions", "order_log_gap", "order_gaps", "event_log_gap", "event_gaps")
# Columns of STATE["mix"], at the middle half-life: where each group of buckets begins.
CATEGORIES, ACTIONS, HOURS = 0, 8, 16
MIX = 16 + 28  # hours of the week in steps of six, from Monday 00:00 UTC
# STATE["buckets"]: [days | weeks][number modulo BUCKETS][orders, events, value].
BUCKETS = 14
# Bits of STATE["circle"]; the first stands for nobody and is never set (events.target_code).
CIRCLE = 256

STATE = np.dtype(
    [
        ("first_ms", "<i8"),
        ("last_ms", "<i8"),
        ("last_type_ms", "<i8", (3,)),  # by Kind
        ("first_order_ms", "<i8"),
        ("last_order_ms", "<i8"),
        ("last_refund_ms", "<i8"),
        ("last_step_ms", "<i8"),  # last event that stepped the model's carry
        ("session_ms", "<i8"),  # start of the session of the last event
        ("first_record_ms", "<i8"),  # smallest record timestamp: tells what an erasure touches
        ("order_gap_ms", "<i8"),  # between the last two orders, 0 before there are two
        ("event_gap_ms", "<i8"),
        ("gross_micro", "<i8"),  # sum of positive values
        ("refunded_micro", "<i8"),  # sum of negative values, without the sign
        ("id_hi", "<u8"),  # sum of the identities folded, modulo 2^64
        ("id_lo", "<u8"),
        ("decayed", "<f8", (3, len(CHANNELS))),
        ("rhythm", "<f8", (len(RHYTHM),)),
        ("counts", "<u4", (3,)),  # events by Kind
        ("orders", "<u4"),  # events of positive value
        ("refunds", "<u4"),  # events of negative value
        ("late", "<u4"),  # events folded at the edge of the allowed lateness
        ("sessions", "<u4"),
        ("session_events", "<u4"),  # events in the session of the last event
        ("mix", "<f4", (MIX,)),
        ("buckets", "<f4", (2, BUCKETS, 3)),
        # From here on blank unless the setting `social` is on and the user has addressed another
        # one: then alone it is stored (blob.py).
        ("last_edge_ms", "<i8"),
        ("decayed_edges", "<f8", (3,)),
        ("edges", "<u4"),  # interactions that address another user
        ("circle", "u1", (CIRCLE // 8,)),  # bit n: somebody with code n was addressed
        # The same for the setting `interests`: decayed words, at the middle half-life.
        ("words", "<f4", (WORDS,)),
    ]
)
# Bytes of a side that every user has, and of one with edges; the rest is about interests.
PLAIN: int = STATE.fields["last_edge_ms"][1] if STATE.fields else 0
EDGED: int = STATE.fields["words"][1] if STATE.fields else 0
# One event as remembered for deduplication.
SEEN = np.dtype(
    [
        ("time_ms", "<i8"),  # remembered ids: time it was folded at; ring: its own event time
        ("record_ms", "<i8"),
        ("id_hi", "<u8"),
        ("id_lo", "<u8"),
        ("content", "<u4"),
        ("source", "u1"),
        ("pad", "u1", (3,)),
    ]
)
# What `verify` has to know of a user: whether the order in which topics were read may show.
MARKS = np.dtype(
    [
        ("settled_record_ms", "<i8"),  # largest record timestamp of the settled events
        ("overtaken", "<u4"),  # events folded although a later one was settled already
        ("capped", "<u4"),  # events that the tail cap settled before their time
        ("split", "<u4"),  # erasures that took settled events with them which came after
    ]
)


def _nothing(dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """One record of zeros, and of no time where a field is one."""
    record = np.zeros(1, dtype)
    for name in dtype.names or ():
        if name.endswith("_ms") and not name.endswith("gap_ms"):
            record[name] = NO_TIME
    return record


_BLANK, _UNMARKED = _nothing(STATE), _nothing(MARKS)


def blank(users: int) -> npt.NDArray[np.void]:
    """Sides of users of whom nothing is known.

    >>> blank(1)["last_ms"][0] == NO_TIME
    np.True_
    """
    return pick(_BLANK, np.zeros(users, np.intp))


def unmarked(users: int) -> npt.NDArray[np.void]:
    """Marks of users of whom nothing is settled.

    >>> unmarked(2)["overtaken"].tolist()
    [0, 0]
    """
    return pick(_UNMARKED, np.zeros(users, np.intp))


@dataclass(slots=True)
class States:
    """States of U users, as columns."""

    users: list[str]
    settled: npt.NDArray[np.void]  # (U,) STATE
    head: npt.NDArray[np.void]  # (U,) STATE; equals settled where there is no tail
    tail: Rows  # EVENT, in fold order
    ids: Rows  # SEEN: identities that left the tail before their time, see fold.py
    ring: Rows  # SEEN: latest value events per source, by (source, event time, id)
    erased_ms: npt.NDArray[np.int64]  # (U,) records up to here are forgotten
    marks: npt.NDArray[np.void]  # (U,) MARKS

    @classmethod
    def empty(cls, users: Sequence[str]) -> States:
        """Users of whom nothing is known."""
        n = len(users)
        return cls(
            list(users),
            blank(n),
            blank(n),
            Rows.empty(n, EVENT),
            Rows.empty(n, SEEN),
            Rows.empty(n, SEEN),
            np.full(n, NO_TIME, np.int64),
            unmarked(n),
        )

    @classmethod
    def decode(cls, users: Sequence[str], blobs: Sequence[bytes | None]) -> States:
        """States from their bytes, None where nothing is stored; StateFormatError if damaged."""
        from featurestore.blob import decode

        return decode(users, blobs)

    def encode(self) -> list[bytes]:
        """Bytes of each user's state, of the current version."""
        from featurestore.blob import encode

        return encode(self)

    def has_tail(self) -> npt.NDArray[np.bool_]:
        """(U,) where the head is stored beside the settled side."""
        return self.tail.lengths > 0

    def known(self) -> npt.NDArray[np.bool_]:
        """(U,) where at least one event is folded."""
        known: npt.NDArray[np.bool_] = self.head["last_ms"] != NO_TIME
        return known

    def select(self, rows: npt.NDArray[np.integer]) -> States:
        """These users, in this order."""
        users = self.users
        return States(
            [users[r] for r in rows.tolist()],
            pick(self.settled, rows),
            pick(self.head, rows),
            self.tail.take(rows),
            self.ids.take(rows),
            self.ring.take(rows),
            self.erased_ms[rows],
            pick(self.marks, rows),
        )

    @classmethod
    def concat(cls, parts: Sequence[States]) -> States:
        """The users of all parts, one after the other; at least one part."""
        return cls(
            [user for part in parts for user in part.users],
            joined([part.settled for part in parts]),
            joined([part.head for part in parts]),
            Rows.concat([part.tail for part in parts]),
            Rows.concat([part.ids for part in parts]),
            Rows.concat([part.ring for part in parts]),
            np.concatenate([part.erased_ms for part in parts]),
            joined([part.marks for part in parts]),
        )


def history(states: States) -> dict[str, npt.NDArray[Any]]:
    """What a document says about the past, as columns (U,), of the head.

    >>> history(States.empty(["ada"]))["orders"].tolist()
    [0]
    """
    head = states.head
    gross, refunded = head["gross_micro"], head["refunded_micro"]
    return {
        "orders": head["orders"].astype(np.int64),
        "spent_micro": gross - refunded,
        "gross_micro": gross.copy(),
        "refunds": head["refunds"].astype(np.int64),
        "refunded_micro": refunded.copy(),
        "first_ms": head["first_ms"].copy(),
        "last_ms": head["last_ms"].copy(),
        "last_order_ms": head["last_order_ms"].copy(),
    }
