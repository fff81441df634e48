"""The fold: states, a batch of events and the sources' clocks give states, outcomes and steps.

For every user of the batch at once: decide each event's outcome (decide.py), put what is folded
into the tail in fold order (time, kind, identity), then

1. settle what lies before the frontier, behind the user's own edge (an event from a source that
   had been idle, or a user beyond the tail cap), or beyond the cap: it steps the settled side;
2. bring the head up to date: new events that stand behind all of the tail step it, anything else
   folds it again from the settled side and the remaining tail. Both come to the same bits.

Erasures come first, whatever their place among the batch's events: an event is dropped if its
record timestamp is not after the user's marker. Events settled already cannot be taken out one
by one: the settled side is wiped if any of them came before the marker.

Users without an event applied or an erasure are left untouched, bit by bit: what lies before
the frontier may stay in a tail, since settling changes no result.

Shapes: U users, N events, M steps, T token size, S sources. Times are integer milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.clock import Clocks, admit, edges_ms, frontier_ms
from featurestore.columns import LATE, NO_ID, NO_TIME, EventBatch, Outcome
from featurestore.decide import decide
from featurestore.fold_settings import FoldSettings
from featurestore.rows import Index, Records, Rows, merge_order, starts_of
from featurestore.state import SEEN, States, blank
from featurestore.step import TOKENS, step, tokens

__all__ = ["FoldSettings", "Folded", "Steps", "fold"]

# Fields that order events of equal time, most important first; the last ones only matter
# between events without an identity.
_TIES = ("kind", "id_hi", "id_lo", "source", "content", "value_micro", "record_ms")


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps of a sequence model's carry, in fold order per row."""

    rows: npt.NDArray[np.int32]  # (M,) row of the user in the batch
    tokens: npt.NDArray[np.float32]  # (M, T), see step.TOKENS

    @classmethod
    def none(cls) -> Steps:
        """No step."""
        return cls(np.empty(0, np.int32), np.empty((0, len(TOKENS)), np.float32))


@dataclass(frozen=True, slots=True)
class Folded:
    """What a batch did.

    The caller brings carries up to date in this order: where `settled_reset`, the settled carry
    becomes zero; it takes `settled_steps`; where `head_reset`, the head's carry becomes the
    settled one; the head's takes `head_steps`.
    Without a tail head_reset holds and there is no head step, so both carries are equal.
    """

    states: States  # of the batch's users, afterwards
    outcome: npt.NDArray[np.uint8]  # (N,) Outcome
    touched: npt.NDArray[np.bool_]  # (U,) state changed: write it
    cause: npt.NDArray[np.int32]  # (U,) the batch's last event in fold order that was folded, or -1
    settled_reset: npt.NDArray[np.bool_]  # (U,) an erasure wiped the settled side
    settled_steps: Steps
    head_reset: npt.NDArray[np.bool_]  # (U,)
    head_steps: Steps
    clocks: Clocks  # afterwards
    erased: list[int]  # rows erased in this batch that hold no event now


def fold(states: States, batch: EventBatch, clocks: Clocks, settings: FoldSettings) -> Folded:
    """Fold `batch` into `states`, whose users are the batch's; the input stays as it is."""
    users = len(batch.users)
    admitted = admit(batch.events, clocks, settings.lateness_ms, settings.skew_ms)
    erased_ms, wiped = _marked(states, batch)
    before = _without_erased(states, erased_ms, wiped) if wiped.any() else states
    outcome = decide(before, batch.user, batch.events, admitted, erased_ms, settings)

    applied = np.flatnonzero(outcome <= Outcome.APPLIED_LATE)
    changed = wiped.copy()
    changed[batch.user[applied]] = True
    touched = changed | (erased_ms != states.erased_ms)
    cause = np.full(users, -1, np.int32)
    head_reset = np.zeros(users, bool)
    rows = np.flatnonzero(changed)
    if not len(rows):
        after = States(
            before.users,
            before.settled,
            before.head,
            before.tail,
            before.ids,
            before.ring,
            erased_ms,
        )
        settled_steps = head_steps = Steps.none()
    else:
        work = _Work.begin(before, batch, admitted.edge_ms, outcome, applied, rows, wiped[rows])
        settled_steps = work.settle(admitted.clocks, settings)
        head_steps = work.renew_head(settings)
        work.remember(admitted.clocks, settings)
        cause[rows] = work.cause()
        head_reset[rows] = work.reset
        after = work.put_back(before, erased_ms)
    asked = {erase.user for erase in batch.erases}
    gone = after.head["last_ms"] == NO_TIME
    erased = [u for u in sorted(asked) if touched[u] and gone[u]]
    return Folded(
        states=after,
        outcome=outcome,
        touched=touched,
        cause=cause,
        settled_reset=wiped & (states.settled["first_record_ms"] <= erased_ms),
        settled_steps=settled_steps,
        head_reset=head_reset,
        head_steps=head_steps,
        clocks=admitted.clocks,
        erased=erased,
    )


def _marked(
    states: States, batch: EventBatch
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Erase markers (U,) including this batch's, and the users of whom they make us forget."""
    marker = states.erased_ms.copy()
    for erase in batch.erases:
        marker[erase.user] = max(int(marker[erase.user]), erase.record_ms)
    earliest = states.head["first_record_ms"]
    return marker, (marker > states.erased_ms) & (earliest != NO_TIME) & (earliest <= marker)


def _without_erased(
    states: States, marker: npt.NDArray[np.int64], wiped: npt.NDArray[np.bool_]
) -> States:
    """`states` without what the markers make forgotten; heads of wiped users are to be folded."""
    settled = states.settled.copy()
    gone = wiped & (settled["first_record_ms"] <= marker)
    settled[gone] = blank(int(gone.sum()))

    def kept(rows: Rows) -> Rows:
        return rows.keep(rows.values["record_ms"] > marker[rows.owner])

    return States(
        states.users,
        settled,
        states.head,
        kept(states.tail),
        kept(states.ids),
        kept(states.ring),
        marker,
    )


@dataclass(slots=True)
class _Work:
    """The users that change, and their tails joined with what is new. R rows, E events."""

    rows: Index  # (R,) their rows in the batch
    settled: Records  # (R,) STATE
    head: Records  # (R,) STATE
    ids: Rows
    ring: Rows
    events: Records  # (E,) tail and new, in fold order
    starts: Index  # (R + 1,)
    owner: Index  # (E,)
    place: Index  # (E,) index in the batch of what is new, -1 of what was in the tail
    tail_lengths: Index  # (R,) as loaded
    value_time_ms: npt.NDArray[np.int64]  # (E,) own event time, also of late money
    stays: npt.NDArray[np.bool_]  # (E,) remains in the tail
    reset: npt.NDArray[np.bool_]  # (R,) the head is folded from the settled side

    @classmethod
    def begin(
        cls,
        states: States,
        batch: EventBatch,
        edge_ms: npt.NDArray[np.int64],
        outcome: npt.NDArray[np.uint8],
        applied: Index,
        rows: Index,
        wiped: npt.NDArray[np.bool_],
    ) -> _Work:
        every = len(rows) == len(states.users)
        tail = states.tail if every else states.tail.take(rows)
        position = np.zeros(len(states.users), np.intp)
        position[rows] = np.arange(len(rows))
        new = batch.events[applied]
        own_time = new["time_ms"].copy()
        late = outcome[applied] == Outcome.APPLIED_LATE
        if late.any():
            new["time_ms"][late] = edge_ms[applied[late]]
            new["flags"][late] |= LATE
        events = np.concatenate([tail.values, new])
        owner = np.concatenate([tail.owner, position[batch.user[applied]]])
        order = merge_order(owner, np.ascontiguousarray(events["time_ms"]), _TIES, events)
        old = len(tail.values)
        place = np.concatenate([np.full(old, -1, np.intp), applied])[order]
        times = np.concatenate([np.full(old, NO_TIME, np.int64), own_time])[order]
        lengths = tail.lengths
        total = lengths + np.bincount(owner[old:], minlength=len(rows))
        return cls(
            rows=rows,
            settled=states.settled.copy() if every else states.settled[rows],
            head=states.head if every else states.head[rows],
            ids=states.ids if every else states.ids.take(rows),
            ring=states.ring if every else states.ring.take(rows),
            events=events[order],
            starts=starts_of(total),
            owner=owner[order],
            place=place,
            tail_lengths=lengths,
            value_time_ms=times,
            stays=np.ones(len(order), bool),
            reset=wiped.copy(),
        )

    def settle(self, clocks: Clocks, settings: FoldSettings) -> Steps:
        """Fold for good what nothing can change any more, and what the cap forces."""
        time = np.ascontiguousarray(self.events["time_ms"])
        frontier = frontier_ms(clocks, settings.lateness_ms)
        # The user's own edge: what is behind it was overtaken, and is folded where it is.
        edge = self.settled["last_ms"]
        behind = time < edge[self.owner]
        self.reset[self.owner[behind]] = True
        done = behind | (time < frontier)
        number = _per_row(done, self.starts)
        if int((np.diff(self.starts) - number).max()) > settings.tail_cap:
            self._cap(number, settings.tail_cap)
        rank = np.arange(len(time)) - self.starts[:-1][self.owner]
        self.stays = rank >= number[self.owner]
        return self._advance(self.settled, ~self.stays, settings)

    def _cap(self, number: Index, cap: int) -> None:
        """Raise `number` (R,) where more than `cap` events of one source would stay."""
        for r in np.flatnonzero(np.diff(self.starts) - number > cap).tolist():
            source = self.events["source"][self.starts[r] : self.starts[r + 1]]
            for s in np.unique(source).tolist():
                at = np.flatnonzero(source == s)
                if len(at) > cap:
                    number[r] = max(int(number[r]), int(at[-cap - 1]) + 1)

    def renew_head(self, settings: FoldSettings) -> Steps:
        """Step the head by what is new, or fold it again; whichever is right and shorter."""
        new = self.place >= 0
        left = _per_row(self.stays, self.starts)
        came = _per_row(new, self.starts)
        # Out of order: an event of the tail stands behind a new one.
        overtaken = np.flatnonzero(new[:-1] & ~new[1:] & (self.owner[:-1] == self.owner[1:]))
        self.reset[self.owner[overtaken]] = True
        self.reset |= left <= came
        self.head = np.where(self.reset, self.settled, self.head)
        use = np.where(self.reset[self.owner], self.stays, new)
        return self._advance(self.head, use, settings)

    def _advance(self, sides: Records, use: npt.NDArray[np.bool_], settings: FoldSettings) -> Steps:
        """Step `sides` in place by the events in `use`."""
        events = self.events[use]
        if not len(events):
            return Steps.none()
        numbers = _per_row(use, self.starts)
        some = np.flatnonzero(numbers)
        starts = starts_of(numbers[some])
        every = len(some) == len(sides)
        part = sides if every else sides[some]
        owner, made = tokens(part, starts, events)
        step(part, starts, events, settings)
        if not every:
            sides[some] = part
        return Steps(self.rows[some[owner]].astype(np.int32), made)

    def remember(self, clocks: Clocks, settings: FoldSettings) -> None:
        """Keep identities that left the tail early, and the ring of value events."""
        edges = edges_ms(clocks.times_ms, settings.lateness_ms)
        named = (self.events["flags"] & NO_ID) == 0
        time = self.events["time_ms"]
        early = ~self.stays & named & (time >= edges[self.events["source"]])
        if len(self.ids.values) or early.any():
            ids = self.ids.values
            held = self.ids.keep(ids["time_ms"] >= edges[ids["source"]])
            self.ids = self._joined(held, early, self.events["time_ms"], settings.ids_cap)
        valued = (self.place >= 0) & named & (self.events["value_micro"] != 0)
        if valued.any():
            some = np.unique(self.owner[valued])
            ring = self.ring.take(some)
            grown = self._joined(ring, valued, self.value_time_ms, settings.ring_cap, some)
            self.ring = self.ring.replace(some, grown)

    def _joined(
        self,
        held: Rows,
        more: npt.NDArray[np.bool_],
        time_ms: npt.NDArray[np.int64],
        cap: int,
        some: Index | None = None,
    ) -> Rows:
        """`held` and the events in `more`, the latest `cap` per source, by source, time and id."""
        events = self.events[more]
        added = np.zeros(len(events), SEEN)
        for name in ("record_ms", "id_hi", "id_lo", "content", "source"):
            added[name] = events[name]
        added["time_ms"] = time_ms[more]
        owner = self.owner[more]
        if some is not None:
            owner = np.searchsorted(some, owner)
        users = len(held.starts) - 1
        values = np.concatenate([held.values, added])
        owner = np.concatenate([held.owner, owner])
        pair = owner * 256 + values["source"]
        ties = ("id_hi", "id_lo", "content", "record_ms")
        order = merge_order(pair, np.ascontiguousarray(values["time_ms"]), ties, values)
        pair = pair[order]
        # Rank from the end of each user and source: the latest are kept.
        ends = np.ones(len(pair), bool)
        ends[:-1] = pair[1:] != pair[:-1]
        at = np.flatnonzero(ends)
        last = at[np.searchsorted(at, np.arange(len(pair)))] if len(at) else at
        keep = last - np.arange(len(pair)) < cap
        lengths = np.bincount(owner[order][keep], minlength=users)
        return Rows(values[order][keep], starts_of(lengths))

    def cause(self) -> npt.NDArray[np.int32]:
        """(R,) index in the batch of the last new event, -1 where none."""
        cause = np.full(len(self.rows), -1, np.int32)
        new = self.place >= 0
        # Where an owner comes again, the last assignment stands.
        cause[self.owner[new]] = self.place[new]
        return cause

    def put_back(self, states: States, erased_ms: npt.NDArray[np.int64]) -> States:
        """All users' states, with these rows as they are now."""
        tail = Rows(self.events[self.stays], starts_of(_per_row(self.stays, self.starts)))
        if len(self.rows) == len(states.users):
            settled, head = self.settled, self.head
        else:
            settled, head = states.settled.copy(), states.head.copy()
            settled[self.rows] = self.settled
            head[self.rows] = self.head
        return States(
            states.users,
            settled,
            head,
            states.tail.replace(self.rows, tail),
            states.ids.replace(self.rows, self.ids),
            states.ring.replace(self.rows, self.ring),
            erased_ms,
        )


def _per_row(mask: npt.NDArray[np.bool_], starts: Index) -> Index:
    """How many of each row's events are in `mask`."""
    upto = np.zeros(len(mask) + 1, np.intp)
    np.cumsum(mask, out=upto[1:])
    numbers: Index = upto[starts[1:]] - upto[starts[:-1]]
    return numbers
