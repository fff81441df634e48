"""Random logs for the tests of the fold, and ways to compare its states with the twin's.

A log is made per source: records in log order with event times around a moving clock, some of
them repeats, some with other content under a known id, some erase records, before which new events
may stand that were made after them. `interleaved` and `batches` play the sources' logs in one
interleaving, cut into batches.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import strategies as st

from featurestore.clock import Clocks
from featurestore.columns import EVENT, NO_ID, NO_TIME, STEPS, Erase, EventBatch, Kind
from featurestore.events import WORDS, action_code
from featurestore.fold import Folded, FoldSettings, fold
from featurestore.fold_settings import DAY_MS
from featurestore.settings import FeatureSettings
from featurestore.state import BUCKETS, CHANNELS, CIRCLE, RHYTHM, States
from featurestore.step import TOKENS
from featurestore.twin import User
from featurestore.update import Event, Side

HOUR_MS = 3_600_000
LATENESS_MS = 6 * HOUR_MS
START_MS = 1_300_000_000_000
SOURCES = ("browse", "purchase", "interaction")


def settings(
    sources: int = 3,
    *,
    tail: int = 256,
    ids: int = 4096,
    ring: int = 64,
    cut_ms: int | None = None,
) -> FoldSettings:
    features = FeatureSettings(
        lateness=timedelta(milliseconds=LATENESS_MS),
        half_lives_days=(0.3, 2.0, 9.0),
        tail_cap=tail,
        ids_cap=ids,
        ring_cap=ring,
    )
    return FoldSettings.of(features, SOURCES[:sources], cut_ms)


@dataclass(frozen=True)
class Record:
    """One record of a log: an event, or an erasure where `event` is None."""

    source: int
    offset: int
    user: str
    record_ms: int
    event: Event | None


Log = list[list[Record]]  # by source


@st.composite
def logs(
    draw: st.DrawFn,
    sources: int = 3,
    *,
    size: int = 40,
    late: bool = True,
    erases: bool = True,
    repeats: bool = True,
    ahead: bool = True,
) -> Log:
    """Logs of `sources` sources whose events come within the lateness, most of them."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    number = draw(st.integers(1, size))
    users = [f"user-{i}" for i in range(draw(st.integers(1, 3)))]
    pace_ms = draw(st.sampled_from([1000, HOUR_MS // 4, 5 * HOUR_MS, 2 * DAY_MS]))
    coarse = draw(st.booleans())  # many equal times
    log: Log = [[] for _ in range(sources)]
    now = START_MS + chance.randrange(0, 30 * DAY_MS)
    for _ in range(number):
        now += int(chance.expovariate(1 / pace_ms))
        source = chance.randrange(sources)
        mine = log[source]
        what = chance.random()
        if erases and what < 0.03:
            user = chance.choice(users)
            for s in range(sources):
                if ahead and chance.random() < 0.4:
                    # Made after the erasure, by a clock that runs ahead; it stands before it.
                    early = draw_event(chance, now + 1, s, late=late, coarse=coarse)
                    log[s].append(Record(s, len(log[s]), user, now + 1, early))
                log[s].append(Record(s, len(log[s]), user, now, None))
            continue
        said = [r for r in mine if r.event is not None]
        if repeats and said and what < 0.2:
            again = chance.choice(said)
            assert again.event is not None
            event = replace(again.event, record_ms=now)
            if chance.random() < 0.25:
                event = replace(event, content=event.content + 1)
                if chance.random() < 0.5:
                    event = replace(event, time_ms=now)
            mine.append(Record(source, len(mine), again.user, now, event))
            continue
        event = draw_event(chance, now, source, late=late, coarse=coarse)
        mine.append(Record(source, len(mine), chance.choice(users), now, event))
    return log


def draw_event(
    chance: random.Random, now: int, source: int, *, late: bool = True, coarse: bool = False
) -> Event:
    """One event that reaches the log at `now`."""
    lag = chance.choice([0, 0, 0, chance.random() * 0.9])
    if late and chance.random() < 0.15:
        lag = chance.random() * 4
    time = now - int(lag * LATENESS_MS)
    if coarse:
        time -= time % HOUR_MS
    if chance.random() < 0.02:
        time = now + 20 * 60_000  # beyond the skew
    value = chance.choice([0, 0, 0, 1, 2_500_000, 19_990_000, 123_456_789, -2_500_000, -7])
    flags = NO_ID if chance.random() < 0.05 else 0
    if value or chance.random() < 0.3:
        flags |= STEPS
    return Event(
        time_ms=time,
        record_ms=now,
        id_hi=chance.getrandbits(64),
        id_lo=chance.getrandbits(64),
        value_micro=value,
        content=chance.getrandbits(31),
        action=chance.choice([0, 0, 1, 3, 7, 300]),
        category=chance.choice([0, 5, 60_000, 12_345]),
        kind=chance.randrange(3),
        source=source,
        flags=flags,
        target=chance.choice([0, 0, 0, 1, 77, 200, 255, chance.randrange(1, 256)]),
        words=chance.choice([(0, 0, 0, 0), (1, 0, 0, 0), (64, 5, 5, 0), (2, 3, 4, 63)]),
    )


def interleaved(log: Log, chance: random.Random) -> list[Record]:
    """All records in one order that keeps each source's."""
    left = [list(reversed(records)) for records in log]
    out = []
    while any(left):
        source = chance.choice([s for s, records in enumerate(left) if records])
        number = min(chance.choice([1, 1, 3, 20]), len(left[source]))
        out += [left[source].pop() for _ in range(number)]
    return out


def in_time(log: Log) -> list[Record]:
    """All records by the time at which they reached the log."""
    return sorted((r for records in log for r in records), key=lambda r: (r.record_ms, r.source))


def batches(records: Sequence[Record], sizes: Sequence[int]) -> Iterator[EventBatch]:
    """Cut into batches of these sizes, over and over."""
    begin, turn = 0, 0
    while begin < len(records):
        size = sizes[turn % len(sizes)]
        yield batch_of(records[begin : begin + size])
        begin, turn = begin + size, turn + 1


def batch_of(records: Sequence[Record]) -> EventBatch:
    users = list(dict.fromkeys(r.user for r in records))
    row = {user: i for i, user in enumerate(users)}
    told = [r for r in records if r.event is not None]
    events = np.zeros(len(told), EVENT)
    for i, record in enumerate(told):
        assert record.event is not None
        for name in Event.__slots__:
            events[name][i] = getattr(record.event, name)
    return EventBatch(
        users,
        np.array([row[r.user] for r in told], np.int32),
        events,
        np.array([r.offset for r in told], np.int64),
        np.array([r.record_ms for r in told], np.int64),
        [Erase(row[r.user], r.source, r.record_ms) for r in records if r.event is None],
        [None] * len(told),
    )


class Folder:
    """Keeps states as a store does, as bytes, and folds batches into them."""

    def __init__(self, settings: FoldSettings) -> None:
        self.settings = settings
        self.clocks = Clocks.start(len(settings.lateness_ms))
        self.blobs: dict[str, bytes] = {}
        self.outcomes: dict[tuple[int, int], int] = {}  # by source and offset
        self.settled_tokens: dict[str, list[bytes]] = {}
        self.head_tokens: dict[str, list[bytes]] = {}

    def fold(self, batch: EventBatch, idle: Sequence[bool] | None = None) -> Folded:
        if idle is not None:
            self.clocks = Clocks(self.clocks.times_ms, np.array(idle))
        before = States.decode(batch.users, [self.blobs.get(user) for user in batch.users])
        folded = fold(before, batch, self.clocks, self.settings)
        self.clocks = folded.clocks
        written = folded.states.encode()
        kept = before.encode()
        for u, user in enumerate(batch.users):
            if folded.touched[u]:
                self.blobs[user] = written[u]
            else:
                assert written[u] == kept[u], "an untouched user's state has changed"
        alone = folded.touched & (folded.cause >= 0) & ~folded.states.has_tail()
        assert folded.head_reset[alone].all(), "without a tail, the head's carry is the settled one"
        assert not np.isin(folded.head_steps.rows, np.flatnonzero(alone)).any()
        for i in range(batch.size):
            key = int(batch.events["source"][i]), int(batch.offset[i])
            self.outcomes[key] = int(folded.outcome[i])
        self._carry(batch.users, folded)
        return folded

    def _carry(self, users: Sequence[str], folded: Folded) -> None:
        """Carries as lists of tokens, brought up to date as Folded says."""
        for u in np.flatnonzero(folded.settled_reset).tolist():
            self.settled_tokens[users[u]] = []
        for row, token in zip(folded.settled_steps.rows, folded.settled_steps.tokens, strict=True):
            self.settled_tokens.setdefault(users[row], []).append(token.tobytes())
        for u in np.flatnonzero(folded.head_reset).tolist():
            self.head_tokens[users[u]] = list(self.settled_tokens.get(users[u], []))
        for row, token in zip(folded.head_steps.rows, folded.head_steps.tokens, strict=True):
            self.head_tokens.setdefault(users[row], []).append(token.tobytes())

    @property
    def carries(self) -> dict[str, list[bytes]]:
        """What a sequence model has read of each user, by the head's carry."""
        return {user: tokens for user, tokens in sorted(self.head_tokens.items()) if tokens}

    def states(self) -> States:
        users = sorted(self.blobs)
        return States.decode(users, [self.blobs[user] for user in users])


def play(log_order: Sequence[Record], sizes: Sequence[int], settings: FoldSettings) -> Folder:
    folder = Folder(settings)
    for batch in batches(log_order, sizes):
        folder.fold(batch)
    return folder


EXACT = (
    *("first_ms", "last_ms", "first_order_ms", "last_order_ms", "last_refund_ms", "last_step_ms"),
    *("edges", "last_edge_ms"),
    *("session_ms", "first_record_ms", "order_gap_ms", "event_gap_ms", "gross_micro"),
    *("refunded_micro", "id_hi", "id_lo", "orders", "refunds", "late", "sessions"),
    "session_events",
)


def assert_same_side(row: np.void, side: Side, settings: FoldSettings) -> None:
    """Exact fields equal, float64 sums to 1e-9, float32 sums to 1e-5 of what went into them."""
    for name in EXACT:
        expected = getattr(side, name)
        assert int(row[name]) == (NO_TIME if expected is None else expected), name
    assert row["counts"].tolist() == side.counts
    assert row["last_type_ms"].tolist() == [NO_TIME if t is None else t for t in side.last_type_ms]
    if side.last_ms is None:
        return
    codes = {c for c in range(CIRCLE) if row["circle"][c // 8] >> (c % 8) & 1}
    assert codes == side.circle
    for h, half_life in enumerate(settings.half_lives_ms):
        scale = 2 ** -((side.last_ms % half_life) / half_life)
        edges = side.decayed_sum("edges", h)
        assert abs(scale * float(row["decayed_edges"][h]) - edges) <= 1e-9 * edges + 1e-12
        gross = scale * float(np.abs(row["decayed"][h]).sum())
        for c, name in enumerate(CHANNELS):
            expected = side.decayed_sum(name, h)
            # Orders and refunds cancel: the tolerance is of what was added, not of what is left.
            spent = value_gross(side, name)
            limit = 1e-9 * max(abs(expected), gross, spent) + 1e-12
            assert abs(scale * float(row["decayed"][h, c]) - expected) <= limit, (name, h)
    scale = 2 ** -((side.last_ms % settings.half_lives_ms[1]) / settings.half_lives_ms[1])
    for c, name in enumerate(RHYTHM):
        expected = side.decayed_sum(name, 1)
        assert abs(scale * float(row["rhythm"][c]) - expected) <= 1e-9 * expected + 1e-12, name
    names = [f"category {i}" for i in range(8)] + [f"action {i}" for i in range(8)]
    names += [f"hours {i}" for i in range(28)]
    for c, name in enumerate(names):
        expected = side.decayed_sum(name, 1)
        assert abs(scale * float(row["mix"][c]) - expected) <= 1e-5 * expected + 1e-7, name
    for c in range(WORDS):
        expected = side.decayed_sum(f"word {c}", 1)
        assert abs(scale * float(row["words"][c]) - expected) <= 1e-5 * expected + 1e-7, c
    for which, (tallies, span) in enumerate(((side.days, DAY_MS), (side.weeks, 7 * DAY_MS))):
        newest = side.last_ms // span
        for number in range(newest - BUCKETS + 1, newest + 1):
            kept = row["buckets"][which, number % BUCKETS]
            tally = tallies.get(number)
            assert kept[0] == (tally.orders if tally else 0)
            assert kept[1] == (tally.events if tally else 0)
            value = tally.value_micro / 1e6 if tally else 0.0
            assert abs(kept[2] - value) <= 1e-3


def value_gross(side: Side, name: str) -> float:
    """How much value went into a decayed sum, signs aside."""
    return (side.gross_micro + side.refunded_micro) / 1e6 if name.startswith("value") else 0.0


def assert_same_user(states: States, u: int, user: User, settings: FoldSettings) -> None:
    """One user's whole state, fast and slow."""
    assert_same_side(states.settled[u], user.settled, settings)
    assert_same_side(states.head[u], user.head(settings), settings)
    if not user.tail:
        assert states.head[u].tobytes() == states.settled[u].tobytes()
    assert [Event.of(e) for e in states.tail.row(u)] == user.tail
    for rows, seen in ((states.ids, user.ids), (states.ring, user.ring)):
        names = ("source", "time_ms", "id_hi", "id_lo", "content", "record_ms")
        kept = [tuple(int(r[n]) for n in names) for r in rows.row(u)]
        assert kept == [tuple(getattr(s, n) for n in names) for s in seen]
    for name in ("overtaken", "capped", "split"):
        assert int(states.marks[name][u]) == getattr(user, name), name
    newest = NO_TIME if user.settled_record_ms is None else user.settled_record_ms
    assert int(states.marks["settled_record_ms"][u]) == newest
    marker = NO_TIME if user.erased_ms is None else user.erased_ms
    assert int(states.erased_ms[u]) == marker


def assert_same_tokens(carry: Sequence[bytes], events: Sequence[Event]) -> None:
    """The carry has read the stepping events of the fold, in order, each as TOKENS says."""
    stepping = [e for e in events if e.flags & STEPS]
    assert len(carry) == len(stepping)
    previous: int | None = None
    for raw, event in zip(carry, stepping, strict=True):
        token = dict(zip(TOKENS, np.frombuffer(raw, np.float32).tolist(), strict=True))
        gap = 0 if previous is None else max(0, event.time_ms - previous)
        when = datetime.fromtimestamp(event.time_ms / 1000, UTC)
        hour = 2 * math.pi * (event.time_ms % DAY_MS) / DAY_MS
        weekday = 2 * math.pi * when.weekday() / 7
        expected = {
            "gap": math.log1p(gap / DAY_MS),
            "first": previous is None,
            "value": math.copysign(math.log1p(abs(event.major)), event.value_micro),
            "browse": event.kind == Kind.BROWSE,
            "purchase": event.kind == Kind.PURCHASE,
            "interaction": event.kind == Kind.INTERACTION,
            "refund": event.value_micro < 0,
            "cart_add": event.action == action_code("cart_add"),
            "wishlist": event.action == action_code("wishlist"),
            "other_action": event.action
            not in (0, action_code("cart_add"), action_code("wishlist")),
            "hour_sin": math.sin(hour),
            "hour_cos": math.cos(hour),
            "weekday_sin": math.sin(weekday),
            "weekday_cos": math.cos(weekday),
        }
        assert token == pytest.approx({k: float(v) for k, v in expected.items()}, abs=1e-6)
        previous = event.time_ms if previous is None else max(previous, event.time_ms)
