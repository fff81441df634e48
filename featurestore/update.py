"""The fold, slow and readable: one user, one event at a time, plain Python.

`apply(side, event, settings)` is the step: everything that is known of a user after one more
event. Decayed sums are kept as of the side's last event and decay with every step; days and
weeks are all kept, not only the latest. fold.py does the same for whole batches in a form that
looks quite different (see state.py), and tests hold the two equal.

`Twin` is the rest of the fold around it, with all rules of order, lateness, duplicates, caps and
erasure (twin.py has them).

Times are integer milliseconds, UTC; None where there is none. Money is integer millionths.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from featurestore.columns import LATE, NO_ID, STEPS, Kind
from featurestore.fold_settings import DAY_MS, WEEK_MS, FoldSettings

_KINDS = tuple(kind.name.lower() for kind in Kind)


@dataclass(frozen=True, slots=True)
class Event:
    """One event; the fields are those of columns.EVENT."""

    time_ms: int
    record_ms: int
    id_hi: int
    id_lo: int
    value_micro: int
    content: int
    action: int
    category: int
    kind: int
    source: int
    flags: int
    target: int = 0
    words: tuple[int, ...] = (0, 0, 0, 0)

    @classmethod
    def of(cls, record: Any) -> Event:
        """From one columns.EVENT record."""
        fields = {name: int(record[name]) for name in cls.__slots__ if name != "words"}
        return cls(**fields, words=tuple(record["words"].tolist()))

    @property
    def identity(self) -> tuple[int, int] | None:
        """What deduplication goes by; None for an event that came without an id."""
        return None if self.flags & NO_ID else (self.id_hi, self.id_lo)

    @property
    def major(self) -> float:
        """Value in major units."""
        return self.value_micro / 1e6


@dataclass(slots=True)
class Decayed:
    """A sum whose parts halve with every half-life, as of a moment that the owner keeps."""

    half_life_ms: int
    sum: float = 0.0

    def pass_time(self, ms: int) -> None:
        """Let time go by."""
        self.sum *= 2 ** (-ms / self.half_life_ms)

    def add(self, amount: float, age_ms: int) -> None:
        """Add what happened `age_ms` before the moment."""
        self.sum += amount * 2 ** (-age_ms / self.half_life_ms)


@dataclass(slots=True)
class Tally:
    """Orders, events and value of one day or week."""

    orders: int = 0
    events: int = 0
    value_micro: int = 0


@dataclass(slots=True)
class Side:
    """Everything folded of one user's events; the fields are those of state.STATE."""

    first_ms: int | None = None
    last_ms: int | None = None
    last_type_ms: list[int | None] = field(default_factory=lambda: [None, None, None])
    first_order_ms: int | None = None
    last_order_ms: int | None = None
    last_refund_ms: int | None = None
    last_step_ms: int | None = None
    session_ms: int | None = None
    first_record_ms: int | None = None
    order_gap_ms: int = 0
    event_gap_ms: int = 0
    counts: list[int] = field(default_factory=lambda: [0, 0, 0])
    orders: int = 0
    refunds: int = 0
    late: int = 0
    sessions: int = 0
    session_events: int = 0
    edges: int = 0
    last_edge_ms: int | None = None
    circle: set[int] = field(default_factory=set)  # codes of the users addressed
    gross_micro: int = 0
    refunded_micro: int = 0
    id_hi: int = 0
    id_lo: int = 0
    # By name and index of the half-life: "orders", "browse", "value_browse", "sessions",
    # "category 3", "hours 27", "edges", "word 5", …
    decayed: dict[tuple[str, int], Decayed] = field(default_factory=dict)
    days: dict[int, Tally] = field(default_factory=dict)
    weeks: dict[int, Tally] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)  # all of them, in fold order

    def decayed_sum(self, name: str, half_life: int) -> float:
        """A decayed sum as of the last event."""
        kept = self.decayed.get((name, half_life))
        return kept.sum if kept else 0.0

    def window(self, as_of_ms: int, days: float) -> Tally:
        """Orders, events and value of (as_of - days, as_of], exactly."""
        inside = [e for e in self.events if as_of_ms - days * DAY_MS < e.time_ms <= as_of_ms]
        return Tally(
            sum(e.value_micro > 0 for e in inside),
            len(inside),
            sum(e.value_micro for e in inside),
        )


def apply(side: Side, event: Event, settings: FoldSettings) -> Side:
    """What is known after `event`; `side` stays as it is."""
    after = deepcopy(side)
    _apply(after, event, settings)
    return after


def fold_in(side: Side, events: list[Event], settings: FoldSettings) -> Side:
    """`apply` of many events, with one copy."""
    after = deepcopy(side)
    for event in events:
        _apply(after, event, settings)
    return after


def _apply(side: Side, event: Event, settings: FoldSettings) -> None:
    time = event.time_ms
    in_order = side.last_ms is None or time >= side.last_ms
    if side.last_ms is not None and time > side.last_ms:
        for kept in side.decayed.values():
            kept.pass_time(time - side.last_ms)
    now = time if in_order or side.last_ms is None else side.last_ms

    def add(name: str, amount: float, half_lives: tuple[int, ...] = (1,)) -> None:
        for h in half_lives:
            kept = side.decayed.setdefault((name, h), Decayed(settings.half_lives_ms[h]))
            kept.add(amount, now - time)

    # What is exact.
    side.first_ms = _least(side.first_ms, time)
    side.first_record_ms = _least(side.first_record_ms, event.record_ms)
    side.last_type_ms[event.kind] = _most(side.last_type_ms[event.kind], time)
    side.counts[event.kind] += 1
    side.late += bool(event.flags & LATE)
    side.id_hi = (side.id_hi + event.id_hi) % 2**64
    side.id_lo = (side.id_lo + event.id_lo) % 2**64
    side.events.append(event)

    # Gaps and sessions know only events in order.
    if in_order:
        gap = None if side.last_ms is None else time - side.last_ms
        if gap is not None:
            side.event_gap_ms = gap
            add("event_log_gap", math.log1p(gap / DAY_MS))
            add("event_gaps", 1)
        if gap is None or gap > settings.session_gap_ms:
            side.sessions += 1
            side.session_ms = time
            side.session_events = 0
            add("sessions", 1)
        side.session_events += 1

    if event.value_micro > 0:
        if side.last_order_ms is not None and time >= side.last_order_ms:
            side.order_gap_ms = time - side.last_order_ms
            add("order_log_gap", math.log1p(side.order_gap_ms / DAY_MS))
            add("order_gaps", 1)
        side.orders += 1
        side.gross_micro += event.value_micro
        side.first_order_ms = _least(side.first_order_ms, time)
        side.last_order_ms = _most(side.last_order_ms, time)
        add("orders", 1, (0, 1, 2))
    if event.value_micro < 0:
        side.refunds += 1
        side.refunded_micro -= event.value_micro
        side.last_refund_ms = _most(side.last_refund_ms, time)

    kind = _KINDS[event.kind]
    add(kind, 1, (0, 1, 2))
    add(f"value_{kind}", event.major, (0, 1, 2))
    if event.category:
        add(f"category {event.category % 8}", 1)
    if event.action:
        add(f"action {event.action % 8}", 1)
    if event.target:
        side.edges += 1
        side.last_edge_ms = _most(side.last_edge_ms, time)
        side.circle.add(event.target)
        add("edges", 1, (0, 1, 2))
    for word in event.words:
        if word:
            add(f"word {word - 1}", 1)
    # 1970-01-01 was a Thursday, the fourth day of a week that begins on Monday.
    add(f"hours {(time + 3 * DAY_MS) // (6 * 3_600_000) % 28}", 1)

    for tallies, span in ((side.days, DAY_MS), (side.weeks, WEEK_MS)):
        tally = tallies.setdefault(time // span, Tally())
        tally.orders += event.value_micro > 0
        tally.events += 1
        tally.value_micro += event.value_micro

    side.last_ms = now
    if event.flags & STEPS:
        side.last_step_ms = _most(side.last_step_ms, time)


def _least(a: int | None, b: int) -> int:
    return b if a is None else min(a, b)


def _most(a: int | None, b: int) -> int:
    return b if a is None else max(a, b)
