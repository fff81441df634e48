"""The fold: states, a batch of events and the sources' clocks give states, outcomes and steps.

For every user of the batch at once: decide each event's outcome (decide.py), put what is folded
into the tail in fold order (time, kind, identity; tails.py), then

1. settle what lies before the frontier, behind the user's own edge (an event from a source that
   had been idle, or a user beyond the tail cap), or beyond the cap: it steps the settled side;
2. bring the head up to date: new events that stand behind all of the tail step it, anything else
   folds it again from the settled side and the remaining tail. Both come to the same bits.

Erasures come first, whatever their place among the batch's events: an event is dropped if its
record timestamp is not after the user's marker. Events settled already cannot be taken out one
by one: the settled side is wiped if any of them came before the marker. What of it came after the
marker goes too, though read in another order it would have stayed; the user is marked as `split`
(ADR 7). A record after the marker whose id was used before it, read ahead of the erasure, is a
repeat of what is then forgotten; read with it, the first of its id (ADR 7, the one open gap).

Beyond the tail cap, and where an idle source comes back, an event may be folded behind one that
is settled already. Batch boundaries then show in gaps, sessions and the carry, and in the order
of float sums; identities, counts, money, first and last times, decayed sums and buckets stay what
they are. Such events are counted as `overtaken`; only of users with one may floats depend on the
order in which topics were read. Only where the remembered ids are full too may an event be
parked that was new.

Users without an event applied or an erasure are left untouched, bit by bit: what lies before
the frontier may stay in a tail, since settling changes no result.

Shapes: U users, N events, M steps, T token size, S sources. Times are integer milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.clock import Clocks, admit
from featurestore.columns import NO_TIME, EventBatch, Outcome
from featurestore.decide import decide
from featurestore.fold_settings import FoldSettings
from featurestore.rows import Rows, copied, put
from featurestore.state import States, blank, unmarked
from featurestore.tails import Steps, Tails

__all__ = ["FoldSettings", "Folded", "Steps", "fold"]


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
    split: int  # users whose erasure took settled events with it that came after


def fold(states: States, batch: EventBatch, clocks: Clocks, settings: FoldSettings) -> Folded:
    """Fold `batch` into `states`, whose users are the batch's; the input stays as it is."""
    users = len(batch.users)
    admitted = admit(batch.events, clocks, settings.lateness_ms, settings.skew_ms)
    erased_ms, wiped = _marked(states, batch)
    before = _without_erased(states, erased_ms, wiped) if wiped.any() else states
    outcome = decide(before, batch.user, batch.events, admitted, erased_ms, settings)

    changed = wiped.copy()
    changed[batch.user[outcome <= Outcome.APPLIED_LATE]] = True
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
            before.marks,
        )
        settled_steps = head_steps = Steps.none()
    else:
        work = Tails.join(before, batch, admitted.edge_ms, outcome, rows, wiped[rows])
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
        split=int((before.marks["split"] - states.marks["split"]).sum()),
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
    settled, marks = copied(states.settled), copied(states.marks)
    gone = np.flatnonzero(wiped & (settled["first_record_ms"] <= marker))
    put(settled, gone, blank(len(gone)))
    split = marks["split"][gone] + (marks["settled_record_ms"][gone] > marker[gone])
    put(marks, gone, unmarked(len(gone)))
    marks["split"][gone] = split

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
        marks,
    )
