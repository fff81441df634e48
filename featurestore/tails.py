"""Tails joined with a batch's new events: what settles, what stays, what steps the head.

Events stay where they were loaded; what is sorted are their positions. Only what steps a side
and what stays in a tail is moved, once.

Shapes: R users that change, E events of their tails and new ones, N events of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.clock import Clocks, edges_ms, frontier_ms
from featurestore.columns import LATE, NO_ID, EventBatch, Outcome
from featurestore.fold_settings import FoldSettings
from featurestore.remember import latest, seen
from featurestore.rows import (
    Index,
    Records,
    Rows,
    copied,
    joined,
    merge_order,
    pick,
    put,
    starts_of,
)
from featurestore.state import States
from featurestore.step import TOKENS, step, tokens

Bools = npt.NDArray[np.bool_]
Times = npt.NDArray[np.int64]

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


@dataclass(slots=True)
class Tails:
    """The users of a batch that change, at work. Call `settle`, `renew_head`, `remember`."""

    rows: Index  # (R,) their rows in the batch, ascending
    settled: Records  # (R,) STATE
    head: Records  # (R,) STATE
    ids: Rows
    ring: Rows
    pool: Records  # (E,) EVENT: tails as loaded, then what is new, late money at its edge
    order: Index  # (E,) positions in the pool, in fold order per row
    owner: Index  # (E,) row, in that order
    time_ms: Times  # (E,) in that order
    total: Index  # (R,) events per row
    new: Index  # places in the order where new events stand
    source_of: Index  # index in the batch of each new event, by position in the pool - old
    old: int  # events of the pool that were loaded
    own_time_ms: Times  # event time of each new event, by position in the pool - old
    number: Index  # (R,) events that settle, the first ones
    reset: Bools  # (R,) the head is folded from the settled side
    marks: Records  # (R,) MARKS

    @classmethod
    def join(
        cls,
        states: States,
        batch: EventBatch,
        edge_ms: Times,
        outcome: npt.NDArray[np.uint8],
        rows: Index,
        wiped: Bools,
    ) -> Tails:
        """Of `rows`, with the batch's applied events put in fold order into their tails."""
        every = len(rows) == len(states.users)
        tail = states.tail if every else states.tail.take(rows)
        applied = np.flatnonzero(outcome <= Outcome.APPLIED_LATE)
        new = pick(batch.events, applied)
        own_time = new["time_ms"].copy()
        late = np.flatnonzero(outcome[applied] == Outcome.APPLIED_LATE)
        new["time_ms"][late] = edge_ms[applied[late]]
        new["flags"][late] |= LATE
        pool = joined([tail.values, new])
        position = np.zeros(len(states.users), np.intp)
        position[rows] = np.arange(len(rows))
        came = position[batch.user[applied]]
        owner = np.concatenate([tail.owner, came])
        time = np.ascontiguousarray(pool["time_ms"])
        order = merge_order(owner, time, _TIES, pool)
        return cls(
            rows=rows,
            settled=copied(states.settled) if every else pick(states.settled, rows),
            head=states.head if every else pick(states.head, rows),
            ids=states.ids if every else states.ids.take(rows),
            ring=states.ring if every else states.ring.take(rows),
            pool=pool,
            order=order,
            owner=owner[order],
            time_ms=time[order],
            total=tail.lengths + np.bincount(came, minlength=len(rows)),
            new=np.flatnonzero(order >= len(tail.values)),
            source_of=applied,
            old=len(tail.values),
            own_time_ms=own_time,
            number=np.zeros(len(rows), np.intp),
            reset=wiped.copy(),
            marks=copied(states.marks) if every else pick(states.marks, rows),
        )

    def settle(self, clocks: Clocks, settings: FoldSettings) -> Steps:
        """Fold for good what nothing can change any more, and what the cap forces."""
        # Behind the user's own edge an event was overtaken, and is folded where it is.
        edge = self.settled["last_ms"][self.owner]
        # One of the settled edge's own time may stand before it in the fold's order.
        overtaken = self.new[self.time_ms[self.new] <= edge[self.new]]
        if len(overtaken):
            self.marks["overtaken"] += np.bincount(
                self.owner[overtaken], minlength=len(self.rows)
            ).astype(np.uint32)
        done = (self.time_ms < edge) | (self.time_ms < frontier_ms(clocks, settings.lateness_ms))
        self.number = np.bincount(self.owner[done], minlength=len(self.rows))
        long = np.flatnonzero(self.total - self.number > settings.tail_cap)
        if len(long):
            before = self.number[long]
            self._cap(long, settings.tail_cap)
            self.marks["capped"][long] += (self.number[long] - before).astype(np.uint32)
        settled = np.flatnonzero(~self._stays())
        if len(settled):
            some = np.flatnonzero(self.number)
            came = self.pool["record_ms"][self.order[settled]]
            newest = np.maximum.reduceat(came, starts_of(self.number[some])[:-1])
            known = self.marks["settled_record_ms"][some]
            self.marks["settled_record_ms"][some] = np.maximum(known, newest)
        return self._advance(self.settled, settled, self.number, settings)

    def _cap(self, rows: Index, cap: int) -> None:
        """Settle more where more than `cap` events of one source would stay."""
        starts = starts_of(self.total)
        for r in rows.tolist():
            source = pick(self.pool, self.order[starts[r] : starts[r + 1]])["source"]
            for s in np.unique(source).tolist():
                at = np.flatnonzero(source == s)
                if len(at) > cap:
                    self.number[r] = max(int(self.number[r]), int(at[-cap - 1]) + 1)

    def _stays(self) -> Bools:
        """(E,) in fold order: not among the first `number` of its row."""
        parts = np.stack([self.number, self.total - self.number], axis=1).reshape(-1)
        stays: Bools = np.repeat(np.tile([False, True], len(self.rows)), parts)
        return stays

    def renew_head(self, settings: FoldSettings) -> Steps:
        """Step the head by what is new, or fold it again; whichever is right and shorter."""
        # Out of order: an event of the tail stands behind a new one. So does every event behind
        # the user's edge, unless nothing of the tail is left, and then the head is folded again.
        new, after = self.new, np.minimum(self.new + 1, len(self.order) - 1)
        overtaken = (self.order[after] < self.old) & (self.owner[after] == self.owner[new])
        self.reset[self.owner[new[overtaken]]] = True
        left, came = (
            self.total - self.number,
            np.bincount(self.owner[new], minlength=len(self.rows)),
        )
        self.reset |= left <= came
        again = np.flatnonzero(self.reset)
        use = new
        self.head = copied(self.head)
        if len(again):
            put(self.head, again, pick(self.settled, again))
            steps = np.zeros(len(self.order), bool)
            steps[new] = True
            use = np.flatnonzero(np.where(self.reset[self.owner], self._stays(), steps))
        return self._advance(self.head, use, np.where(self.reset, left, came), settings)

    def _advance(self, sides: Records, use: Index, numbers: Index, settings: FoldSettings) -> Steps:
        """Step `sides` in place by the events at `use` of the order, `numbers` of each row."""
        if not len(use):
            return Steps.none()
        events = pick(self.pool, self.order[use])
        some = np.flatnonzero(numbers)
        starts = starts_of(numbers[some])
        every = len(some) == len(sides)
        part = sides if every else pick(sides, some)
        owner, made = tokens(part, starts, events)
        step(part, starts, events, settings)
        if not every:
            put(sides, some, part)
        return Steps(self.rows[some[owner]].astype(np.int32), made)

    def remember(self, clocks: Clocks, settings: FoldSettings) -> None:
        """Keep identities that left the tail early, and the ring of value events."""
        edges = edges_ms(clocks.times_ms, settings.lateness_ms)
        gone = np.flatnonzero(~self._stays())
        gone = gone[self.time_ms[gone] >= edges.min()]
        if len(self.ids.values) or len(gone):
            events = pick(self.pool, self.order[gone])
            time = events["time_ms"]
            early = np.flatnonzero(
                (time >= edges[events["source"]]) & (events["flags"] & NO_ID == 0)
            )
            known = self.ids.values
            held = self.ids.keep(known["time_ms"] >= edges[known["source"]])
            more = seen(pick(events, early), time[early])
            self.ids = latest(held, self.owner[gone[early]], more, settings.ids_cap)
        at = self.order[self.new]
        events = pick(self.pool, at)
        valued = np.flatnonzero((events["value_micro"] != 0) & (events["flags"] & NO_ID == 0))
        if len(valued):
            more = seen(pick(events, valued), self.own_time_ms[at[valued] - self.old])
            owner = self.owner[self.new[valued]]
            some = np.unique(owner)
            ring = self.ring.take(some)
            grown = latest(ring, np.searchsorted(some, owner), more, settings.ring_cap)
            self.ring = self.ring.replace(some, grown)

    def cause(self) -> npt.NDArray[np.int32]:
        """(R,) index in the batch of the last new event in fold order, -1 where none."""
        cause = np.full(len(self.rows), -1, np.int32)
        # Where an owner comes again, the last assignment stands.
        cause[self.owner[self.new]] = self.source_of[self.order[self.new] - self.old]
        return cause

    def put_back(self, states: States, erased_ms: Times) -> States:
        """All users' states, with these rows as they are now."""
        stays = self.order[np.flatnonzero(self._stays())]
        tail = Rows(pick(self.pool, stays), starts_of(self.total - self.number))
        settled, head, marks = self.settled, self.head, self.marks
        if len(self.rows) < len(states.users):
            settled, head = copied(states.settled), copied(states.head)
            marks = copied(states.marks)
            put(settled, self.rows, self.settled)
            put(head, self.rows, self.head)
            put(marks, self.rows, self.marks)
        return States(
            states.users,
            settled,
            head,
            states.tail.replace(self.rows, tail),
            states.ids.replace(self.rows, self.ids),
            states.ring.replace(self.rows, self.ring),
            erased_ms,
            marks,
        )
