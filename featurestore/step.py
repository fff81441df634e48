"""The step of the fold: add events to sides, all users at once.

Each user's events stand in fold order: ascending time. A side is never moved back: an event
older than the side's last adds its contribution decayed, and leaves gaps and sessions alone.
Nothing depends on where a sequence of events is cut into calls, to the last bit: integers are
sums, decayed sums are in forward form (see state.py), and numpy's `add.at` adds in order.

Also makes the tokens that step the model's carry, of events with the flag STEPS.

Shapes: G users with events, M their events, T token size. Times are integer milliseconds, UTC.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featurestore.columns import LATE, NO_TIME, STEPS, Kind
from featurestore.events import WORDS
from featurestore.fold_settings import DAY_MS, WEEK_MS, FoldSettings
from featurestore.rows import Index, Records, pick
from featurestore.state import (
    ACTIONS,
    BUCKETS,
    CATEGORIES,
    CHANNELS,
    CIRCLE,
    HOURS,
    MIX,
    ORDERS,
    RHYTHM,
    VALUES,
)

Floats = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]

TOKENS = (
    "gap",  # log1p days since the previous stepping event, 0 for the first
    "first",  # 1 for the user's first stepping event
    "value",  # signed log1p of the value in major units
    "browse",
    "purchase",
    "interaction",
    "refund",  # 1 where the value is negative
    "cart_add",
    "wishlist",
    "other_action",  # 1 for any other action
    "hour_sin",
    "hour_cos",
    "weekday_sin",
    "weekday_cos",
)
CART_ADD, WISHLIST = 1, 3  # events.action_code of these, held equal by a test

# Below these a decayed sum is nothing: far above where floats lose bits, so that shrinking in
# one go or in many comes to the same.
_NOTHING_64 = 2.0**-500
_NOTHING_32 = np.float32(2.0**-60)
# 1970-01-01 was a Thursday: three days into the week that begins on Monday.
_THURSDAY_MS = 3 * DAY_MS


def step(sides: Records, starts: Index, events: Records, settings: FoldSettings) -> None:
    """Fold `events` (M,) into `sides` (G,), in place.

    User g's are events[starts[g]:starts[g+1]], at least one.
    """
    sizes = np.diff(starts)
    first, last = starts[:-1], starts[1:] - 1
    owner = np.repeat(np.arange(len(sides)), sizes)
    time = np.ascontiguousarray(events["time_ms"])
    value = np.ascontiguousarray(events["value_micro"])
    kind = events["kind"].astype(np.intp)
    before = sides["last_ms"].copy()
    now = np.maximum(before, time[last])

    # Of a user without a past, the scale begins with the first event.
    since = np.where(before == NO_TIME, time[first], before)
    moved = [np.flatnonzero(now // h - since // h) for h in settings.half_lives_ms]
    for h, at in enumerate(moved):
        if len(at):
            _shrink(sides, h, at, since, now, settings.half_lives_ms[h])
    _count(sides, first, owner, events, time, value, kind)
    weights = [_weight(time, now[owner], h) for h in settings.half_lives_ms]
    ordered = np.flatnonzero(value > 0)
    valued = np.flatnonzero(value)
    major = value[valued] / 1e6

    decayed = sides["decayed"].reshape(-1).copy()
    slot = owner * sides["decayed"][0].size
    for h, weight in enumerate(weights):
        column = slot + h * len(CHANNELS)
        np.add.at(decayed, column + kind, weight)
        np.add.at(decayed, column[ordered] + ORDERS, weight[ordered])
        np.add.at(decayed, column[valued] + VALUES + kind[valued], weight[valued] * major)
    sides["decayed"] = decayed.reshape(-1, len(weights), len(CHANNELS))

    _rhythm(sides, first, last, owner, time, ordered, before, weights[1], settings)
    _mix(sides, owner, events, time, weights[1].astype(np.float32))
    _edges(sides, owner, events, time, weights)
    _words(sides, owner, events, weights[1].astype(np.float32))
    _buckets(sides, owner, time, ordered, valued, major, now)
    for h, at in enumerate(moved):
        if len(at):
            _forget(sides, h, at)
    sides["last_ms"] = now


def tokens(sides: Records, starts: Index, events: Records) -> tuple[Index, npt.NDArray[np.float32]]:
    """Owner (M',) and tokens (M', T) of the events that step the carry, in order.

    Keeps the time of the last of them in `sides` (G,), in place.
    """
    stepping = np.flatnonzero(events["flags"] & STEPS)
    owner = np.searchsorted(starts, stepping, side="right") - 1
    out = np.zeros((len(stepping), len(TOKENS)), np.float32)
    if not len(stepping):
        return owner, out
    chosen = pick(events, stepping)
    time = np.ascontiguousarray(chosen["time_ms"])
    value = chosen["value_micro"]
    kind, action = chosen["kind"], chosen["action"]
    previous = _previous(time, owner, sides["last_step_ms"])
    known = previous != NO_TIME
    gap = np.where(known, np.maximum(time - previous, 0), 0)
    out[:, 0] = np.log1p(gap / DAY_MS)
    out[:, 1] = ~known
    out[:, 2] = np.sign(value) * np.log1p(np.abs(value / 1e6))
    for k in Kind:
        out[:, 3 + k] = kind == k
    out[:, 6] = value < 0
    out[:, 7] = action == CART_ADD
    out[:, 8] = action == WISHLIST
    out[:, 9] = (action != 0) & (action != CART_ADD) & (action != WISHLIST)
    hour = (time % DAY_MS) * (2 * np.pi / DAY_MS)
    weekday = ((time + _THURSDAY_MS) // DAY_MS % 7) * (2 * np.pi / 7)
    out[:, 10] = np.sin(hour)
    out[:, 11] = np.cos(hour)
    out[:, 12] = np.sin(weekday)
    out[:, 13] = np.cos(weekday)
    latest = sides["last_step_ms"].copy()
    np.maximum.at(latest, owner, time)
    sides["last_step_ms"] = latest
    return owner, out


def _previous(time: Times, owner: Index, before: Times) -> Times:
    """Latest time of the same owner before each event: from the sequence, else from `before`."""
    previous = np.empty(len(time), np.int64)
    previous[1:] = time[:-1]
    begins = np.ones(len(time), bool)
    begins[1:] = owner[1:] != owner[:-1]
    previous[begins] = NO_TIME
    out: Times = np.maximum(previous, before[owner])
    return out


def _weight(time: Times, now: Times, half_life_ms: int) -> Floats:
    """2^(t / h - whole half-lives up to now), (M,): the scaling is exact, so now costs no bit."""
    whole = time // half_life_ms
    part = np.exp2((time - whole * half_life_ms) / half_life_ms)
    shift = np.maximum(whole - now // half_life_ms, -1100).astype(np.int32)
    return part if not shift.any() else np.ldexp(part, shift)


def _shrink(sides: Records, h: int, at: Index, since: Times, now: Times, half_life_ms: int) -> None:
    """Bring the decayed sums of half-life `h` from the scale of `since` to that of `now`."""
    whole = now[at] // half_life_ms - since[at] // half_life_ms
    by = -np.minimum(whole, 1100).astype(np.int32)[:, None]
    sums = sides["decayed"][at]
    sums[:, h] = np.ldexp(sums[:, h], by)
    sides["decayed"][at] = sums
    if sides["edges"][at].any():
        sums = sides["decayed_edges"][at]
        sums[:, h] = np.ldexp(sums[:, h], by[:, 0])
        sides["decayed_edges"][at] = sums
    if h == 1:
        some = ("words",) if sides["words"][at].any() else ()
        for name in ("rhythm", "mix", *some):
            sides[name][at] = np.ldexp(sides[name][at], by)


def _forget(sides: Records, h: int, at: Index) -> None:
    """Drop sums that have shrunk to nothing, where the scale has moved."""
    sums = sides["decayed"][at]
    sums[:, h][np.abs(sums[:, h]) < _NOTHING_64] = 0
    sides["decayed"][at] = sums
    if sides["edges"][at].any():
        sums = sides["decayed_edges"][at]
        sums[:, h][sums[:, h] < _NOTHING_64] = 0
        sides["decayed_edges"][at] = sums
    if h == 1:
        some = (("words", _NOTHING_32),) if sides["words"][at].any() else ()
        for name, nothing in (("rhythm", _NOTHING_64), ("mix", _NOTHING_32), *some):
            sums = sides[name][at]
            sums[np.abs(sums) < nothing] = 0
            sides[name][at] = sums


def _count(
    sides: Records,
    first: Index,
    owner: Index,
    events: Records,
    time: Times,
    value: Times,
    kind: Index,
) -> None:
    """What is exact: times, counts, money and the sums of identities."""
    users = len(sides)
    begin = sides["first_ms"]
    sides["first_ms"] = np.where(begin == NO_TIME, time[first], np.minimum(begin, time[first]))
    record = sides["first_record_ms"]
    earliest = np.minimum.reduceat(np.ascontiguousarray(events["record_ms"]), first)
    sides["first_record_ms"] = np.where(record == NO_TIME, earliest, np.minimum(record, earliest))
    latest = sides["last_type_ms"].reshape(-1).copy()
    slot = owner * 3 + kind
    np.maximum.at(latest, slot, time)
    sides["last_type_ms"] = latest.reshape(-1, 3)
    sides["counts"] += np.bincount(slot, minlength=users * 3).reshape(-1, 3).astype(np.uint32)
    for name in ("id_hi", "id_lo"):
        sides[name] += np.add.reduceat(np.ascontiguousarray(events[name]), first)
    late = (events["flags"] & LATE) != 0
    if late.any():
        sides["late"] += np.bincount(owner[late], minlength=users).astype(np.uint32)

    positive = np.flatnonzero(value > 0)
    if len(positive):
        who, when = owner[positive], time[positive]
        sides["orders"] += np.bincount(who, minlength=users).astype(np.uint32)
        _add(sides, "gross_micro", who, value[positive])
        begin = np.where(sides["first_order_ms"] == NO_TIME, when.max(), sides["first_order_ms"])
        np.minimum.at(begin, who, when)
        ordered = np.unique(who)
        sides["first_order_ms"][ordered] = begin[ordered]
    negative = np.flatnonzero(value < 0)
    if len(negative):
        who = owner[negative]
        sides["refunds"] += np.bincount(who, minlength=users).astype(np.uint32)
        _add(sides, "refunded_micro", who, -value[negative])
        last = sides["last_refund_ms"].copy()
        np.maximum.at(last, who, time[negative])
        sides["last_refund_ms"] = last


def _add(sides: Records, name: str, owner: Index, amounts: Times) -> None:
    sums = sides[name].copy()
    np.add.at(sums, owner, amounts)
    sides[name] = sums


def _rhythm(
    sides: Records,
    first: Index,
    last: Index,
    owner: Index,
    time: Times,
    ordered: Index,
    before: Times,
    weight: Floats,
    settings: FoldSettings,
) -> None:
    """Gaps between events and between orders, and sessions."""
    rhythm = sides["rhythm"].reshape(-1).copy()
    slot = owner * len(RHYTHM)

    previous = _previous(time, owner, before)
    known = previous != NO_TIME
    on = time >= previous
    gap = time - previous
    new = on & (~known | (gap > settings.session_gap_ms))
    at = np.flatnonzero(on & known)
    np.add.at(rhythm, slot[at] + 3, weight[at] * np.log1p(gap[at] / DAY_MS))
    np.add.at(rhythm, slot[at] + 4, weight[at])
    # Where an owner comes again, the last assignment stands.
    sides["event_gap_ms"][owner[at]] = gap[at]

    at = np.flatnonzero(new)
    np.add.at(rhythm, slot[at], weight[at])
    sides["sessions"] += np.bincount(owner[at], minlength=len(sides)).astype(np.uint32)
    sides["session_ms"][owner[at]] = time[at]
    # Events since the session's start: all since before where none began here.
    upto = np.concatenate([[0], np.cumsum(on)])
    begin = first.copy()
    begin[owner[at]] = at
    carried = sides["session_events"].copy()
    carried[owner[at]] = 0
    sides["session_events"] = carried + (upto[last + 1] - upto[begin]).astype(np.uint32)

    if len(ordered):
        who, when = owner[ordered], time[ordered]
        latest = sides["last_order_ms"].copy()
        previous = _previous(when, who, latest)
        gap = when - previous
        at = np.flatnonzero((previous != NO_TIME) & (when >= previous))
        heavy = weight[ordered[at]]
        np.add.at(rhythm, slot[ordered[at]] + 1, heavy * np.log1p(gap[at] / DAY_MS))
        np.add.at(rhythm, slot[ordered[at]] + 2, heavy)
        sides["order_gap_ms"][who[at]] = gap[at]
        np.maximum.at(latest, who, when)
        sides["last_order_ms"] = latest
    sides["rhythm"] = rhythm.reshape(-1, len(RHYTHM))


def _mix(
    sides: Records, owner: Index, events: Records, time: Times, weight: npt.NDArray[np.float32]
) -> None:
    """Decayed activity by category, action and hour of the week."""
    mix = sides["mix"].reshape(-1).copy()
    slot = owner * MIX
    for name, begin in (("category", CATEGORIES), ("action", ACTIONS)):
        code = events[name]
        at = np.flatnonzero(code)
        np.add.at(mix, slot[at] + begin + (code[at] & 7), weight[at])
    hours = (time + _THURSDAY_MS) // (DAY_MS // 4) % 28
    np.add.at(mix, slot + HOURS + hours, weight)
    sides["mix"] = mix.reshape(-1, MIX)


def _edges(
    sides: Records, owner: Index, events: Records, time: Times, weights: list[Floats]
) -> None:
    """Whom users addressed: how many different ones, how often and when."""
    at = np.flatnonzero(events["target"])
    if not len(at):
        return
    who, code = owner[at], events["target"][at]
    sides["edges"] += np.bincount(who, minlength=len(sides)).astype(np.uint32)
    last = sides["last_edge_ms"].copy()
    np.maximum.at(last, who, time[at])
    sides["last_edge_ms"] = last
    circle = sides["circle"].reshape(-1).copy()
    np.bitwise_or.at(circle, who * (CIRCLE // 8) + (code >> 3), np.uint8(1) << (code & 7))
    sides["circle"] = circle.reshape(-1, CIRCLE // 8)
    decayed = sides["decayed_edges"].reshape(-1).copy()
    for h, weight in enumerate(weights):
        np.add.at(decayed, who * len(weights) + h, weight[at])
    sides["decayed_edges"] = decayed.reshape(-1, len(weights))


def _words(sides: Records, owner: Index, events: Records, weight: npt.NDArray[np.float32]) -> None:
    """Decayed words of what events were about."""
    words = events["words"]
    at, which = np.nonzero(words)
    if not len(at):
        return
    sums = sides["words"].reshape(-1).copy()
    np.add.at(sums, owner[at] * WORDS + words[at, which] - 1, weight[at])
    sides["words"] = sums.reshape(-1, WORDS)


def _buckets(
    sides: Records,
    owner: Index,
    time: Times,
    ordered: Index,
    valued: Index,
    major: Floats,
    now: Times,
) -> None:
    """Orders, events and value of the last days and weeks, up to the side's last event."""
    before = sides["last_ms"]
    buckets = sides["buckets"].reshape(-1).copy()
    for which, span in enumerate((DAY_MS, WEEK_MS)):
        today = now // span
        ahead = np.where(before == NO_TIME, 0, today - before // span)
        moved = np.flatnonzero(ahead)
        if len(moved):
            age = (today[moved, None] - np.arange(BUCKETS)) % BUCKETS
            view = buckets.reshape(-1, 2, BUCKETS, 3)
            stale = view[moved, which]
            stale[age < ahead[moved, None]] = 0
            view[moved, which] = stale
        number = time // span
        alive = number > today[owner] - BUCKETS
        slot = ((owner * 2 + which) * BUCKETS + number % BUCKETS) * 3
        at = ordered[alive[ordered]]
        np.add.at(buckets, slot[at], np.float32(1))
        at = np.flatnonzero(alive)
        np.add.at(buckets, slot[at] + 1, np.float32(1))
        keep = alive[valued]
        np.add.at(buckets, slot[valued[keep]] + 2, major[keep].astype(np.float32))
    sides["buckets"] = buckets.reshape(-1, 2, BUCKETS, 3)
