"""What becomes of each event: late, repeated, in conflict, erased, or folded.

Identity is per user and source; the first in its source's log wins. What is known of a source
is what was folded at or after its edge (clock minus lateness) and can still be in the tail or
among the remembered ids; older identities are forgotten, whether or not they still lie about,
so that the answer depends on the source's log alone. Late events that carry value are checked
against the ring of the latest value events instead.

Repeats within one batch and against what is known are found over all users at once. Only users
and sources with late money, or with an identity that returns after it was forgotten, are decided
event by event.

Shapes: N events of a batch, U users.
"""

from __future__ import annotations

from bisect import insort

import numpy as np
import numpy.typing as npt

from featurestore.clock import Admitted
from featurestore.columns import NO_ID, NO_TIME, Outcome
from featurestore.fold_settings import FoldSettings
from featurestore.rows import Index, Records, Rows, pick
from featurestore.state import States

Outcomes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Keys = npt.NDArray[np.uint64]


def decide(
    states: States,
    user: npt.NDArray[np.int32],
    events: Records,
    admitted: Admitted,
    erased_ms: npt.NDArray[np.int64],
    settings: FoldSettings,
) -> Outcomes:
    """Outcome (N,) of each event.

    `states` hold nothing any more of what `erased_ms` (U,), the markers including this batch's,
    makes forgotten.
    """
    outcome = np.full(len(events), Outcome.APPLIED, np.uint8)
    plain = (events["flags"] & NO_ID) != 0
    late_money = admitted.late & (events["value_micro"] != 0)
    outcome[admitted.future] = Outcome.FUTURE
    outcome[admitted.late] = Outcome.LATE
    outcome[late_money] = Outcome.APPLIED_LATE
    if settings.cut_ms is not None:
        # Before lateness: what the store's base holds is not counted again as late money.
        outcome[events["time_ms"] < settings.cut_ms] = Outcome.BEFORE_CUT
    outcome[events["record_ms"] <= erased_ms[user]] = Outcome.ERASED

    open_ = np.flatnonzero((outcome <= Outcome.APPLIED_LATE) & ~plain)
    if not len(open_):
        return outcome
    pair = user.astype(np.intp) * len(settings.lateness_ms) + events["source"]
    hard = np.zeros(len(states.users) * len(settings.lateness_ms), bool)
    hard[pair[open_][late_money[open_]]] = True
    oldest = _oldest_where_full(states.ids, settings)
    if oldest is not None:
        hard[pair[open_][events["time_ms"][open_] < oldest[pair[open_]]]] = True
    _repeats(states, open_, pair, events, admitted, outcome, hard)
    if hard.any():
        chosen = open_[hard[pair[open_]]]
        by_pair = chosen[np.argsort(pair[chosen], kind="stable")]
        cuts = np.flatnonzero(np.diff(pair[by_pair])) + 1
        for group in np.split(by_pair, cuts):
            _one_by_one(states, group, user, events, admitted, settings, outcome)
    return outcome


def _oldest_where_full(ids: Rows, settings: FoldSettings) -> npt.NDArray[np.int64] | None:
    """Per user and source: time of the oldest remembered id, NO_TIME while there is room."""
    if not len(ids.values):
        return None
    sources = len(settings.lateness_ms)
    slots = (len(ids.starts) - 1) * sources
    pair = ids.owner * sources + ids.values["source"]
    numbers = np.bincount(pair, minlength=slots)
    oldest = np.full(slots, np.iinfo(np.int64).max)
    np.minimum.at(oldest, pair, np.ascontiguousarray(ids.values["time_ms"]))
    oldest[numbers < settings.ids_cap] = NO_TIME
    return oldest


def _keys(pair: Index, records: Records) -> Keys:
    """64 bits of user, source and identity; equal keys are compared in full."""
    mixed = pair.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= np.ascontiguousarray(records["id_hi"]) * np.uint64(0xD6E8FEB86659FD93)
    mixed ^= np.ascontiguousarray(records["id_lo"])
    return mixed


def _repeats(
    states: States,
    open_: Index,
    pair: Index,
    events: Records,
    admitted: Admitted,
    outcome: Outcomes,
    hard: Bools,
) -> None:
    """Mark repeats of the open events; pairs that need care become `hard`."""
    keys = _keys(pair[open_], pick(events, open_))
    by_key = np.argsort(keys, kind="stable")
    in_order = keys[by_key]
    index = open_[by_key]
    sources = len(hard) // max(1, len(states.users))

    # The leader of each key: the known event, else the first of this batch.
    begins = np.ones(len(index), bool)
    begins[1:] = in_order[1:] != in_order[:-1]
    first = np.maximum.accumulate(np.where(begins, np.arange(len(index)), 0))
    leader = {name: events[name][index] for name in ("time_ms", "id_hi", "id_lo", "content")}
    is_known = np.zeros(len(index), bool)
    low = np.ascontiguousarray(events["id_lo"][open_])
    for rows in (states.tail, states.ids):
        at = _maybe_known(rows, low)
        if not len(at):
            continue
        records = pick(rows.values, at)
        if "flags" in (records.dtype.names or ()):
            named = (records["flags"] & NO_ID) == 0
            at, records = at[named], pick(records, np.flatnonzero(named))
        owner = np.searchsorted(rows.starts, at, side="right") - 1
        known = _keys(owner * sources + records["source"], records)
        place = np.minimum(np.searchsorted(in_order, known), len(index) - 1)
        found = np.flatnonzero(in_order[place] == known)
        place = place[found]
        # Two known events of one identity: only one can count, leave it to the slow way.
        twice = is_known[place] | (np.bincount(place, minlength=len(index))[place] > 1)
        hard[pair[index[place[twice]]]] = True
        for name, column in leader.items():
            column[place] = records[name][found]
        is_known[place] = True

    at = np.flatnonzero(~begins | is_known[first])
    if not len(at):
        return
    who = index[at]
    led = {name: column[first[at]] for name, column in leader.items()}
    same = (led["id_hi"] == events["id_hi"][who]) & (led["id_lo"] == events["id_lo"][who])
    remembered = led["time_ms"] >= admitted.edge_ms[who]
    hard[pair[who][~(same & remembered)]] = True
    equal = led["content"] == events["content"][who]
    outcome[who] = np.where(equal, Outcome.DUPLICATE, Outcome.CONFLICT)


def _maybe_known(rows: Rows, low: Keys) -> Index:
    """Where `rows` may hold one of the identities with these low words.

    A table of one bit of truth per 16 bits of hash: it reads every remembered identity once,
    whatever the number of new events, and lets about one in sixteen through in vain.
    """
    if not len(rows.values):
        return np.empty(0, np.intp)
    mask = np.uint64((1 << max(10, int(len(low) * 16 - 1).bit_length())) - 1)
    table = np.zeros(int(mask) + 1, bool)
    table[low & mask] = True
    return np.flatnonzero(table[rows.values["id_lo"] & mask])


def _one_by_one(
    states: States,
    group: Index,
    user: npt.NDArray[np.int32],
    events: Records,
    admitted: Admitted,
    settings: FoldSettings,
    outcome: Outcomes,
) -> None:
    """Decide the open events of one user and source in the order of the source's log."""
    u, source = int(user[group[0]]), int(events["source"][group[0]])
    known: dict[tuple[int, int], tuple[int, int]] = {}
    tail, ids = states.tail.row(u), states.ids.row(u)
    tail = tail[(tail["source"] == source) & ((tail["flags"] & NO_ID) == 0)]
    ids = ids[ids["source"] == source]
    for rows in (ids, tail):
        for time, content, high, low in zip(
            rows["time_ms"].tolist(),
            rows["content"].tolist(),
            rows["id_hi"].tolist(),
            rows["id_lo"].tolist(),
            strict=True,
        ):
            before = known.get((high, low))
            if before is None or before[0] <= time:
                known[high, low] = (time, content)
    full = len(ids) >= settings.ids_cap
    oldest = int(ids["time_ms"].min()) if full else NO_TIME
    seen = states.ring.row(u)
    seen = seen[seen["source"] == source]
    names = ("time_ms", "id_hi", "id_lo", "content")
    ring: list[tuple[int, ...]] = list(zip(*(seen[n].tolist() for n in names), strict=True))

    for i in group.tolist():
        event = events[i]
        time, content, edge = int(event["time_ms"]), int(event["content"]), int(admitted.edge_ms[i])
        identity = (int(event["id_hi"]), int(event["id_lo"]))
        late = bool(admitted.late[i])
        before = known.get(identity)
        said = [before[1]] if before is not None and before[0] >= edge else []
        if late and not said:
            said = [entry[3] for entry in ring if entry[1:3] == identity]
        if said:
            outcome[i] = Outcome.DUPLICATE if content in said else Outcome.CONFLICT
            continue
        if late:
            parked = len(ring) >= settings.ring_cap and (time, *identity) < ring[0]
        else:
            parked = full and time < oldest
        if parked:
            outcome[i] = Outcome.LATE
            continue
        outcome[i] = Outcome.APPLIED_LATE if late else Outcome.APPLIED
        known[identity] = (edge if late else time, content)
        if event["value_micro"]:
            insort(ring, (time, *identity, content))
            del ring[: -settings.ring_cap]
