"""Point-in-time training rows: what was known of a user at a cut-off, and what came after.

The log goes through `featurestore.fold`, as live; at each cut-off c what had arrived by c (log
time < c) is encoded as of c, for every user seen, and nothing later is looked at. So a row is the
vector that a live score of that instant would have used. The carry is not stored but the tokens
that step it, in the order of the head at c, since the net that makes it is still to be trained.
Cut-offs of one user share one sequence as long as the later order only extends the earlier one; a
late event that re-orders it begins a new one.

Beside `features` stand `extra` columns: a user's edges where the setting `social` is on, and what
is known of neighbours (scoring.social) at the row's cut-off where the log has edges. `table` is
the latter at the log's clock, for the generation to carry. `words` are what a user's events were
about where the setting `interests` is on; what a model reads of them its own directions tell.

Labels: net value in event time [c, c + horizon), clipped at zero, and whether a positive value
event lies in it. Only mature ones are marked: c + horizon + lateness <= the log's clock.

Memory: one blob per kept user, as in the store, and the rows. `share` keeps a part of the users
(by hash of the name) where that is too much; the clocks still see every event.

Shapes: N rows (a user at a cut-off), W cut-offs, H horizons, F features, S steps of Q sequences
end to end, T tokens. Times are integer milliseconds, UTC; value in major units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from featurestore.clock import Clocks
from featurestore.columns import NO_TIME, Erase, EventBatch, Kind, Outcome
from featurestore.events import WORDS
from featurestore.features import FEATURES, table
from featurestore.fold import Folded, FoldSettings, Steps, fold
from featurestore.settings import FeatureSettings
from featurestore.state import States
from featurestore.vector import TOKENS, encode, interests
from scoring.inputs import FEATURE_NAMES, positions
from scoring.interests import INTEREST_NAMES, Directions
from scoring.interface import Floats
from scoring.social import NEAR_NAMES, Table
from scoring.training.draws import drawn
from scoring.training.social_graph import Edges, worth

DAY_MS = 86_400_000
MICRO = 1_000_000
CHUNK = 4096  # users decoded at once when a cut-off is taken

Log = Iterable[tuple[int, EventBatch]]  # (partition, batch), each partition in log order
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Examples:
    """Training rows of all users at all cut-offs."""

    users: list[str]
    cutoffs_ms: Ints  # (W,)
    horizons_s: tuple[int, ...]  # (H,)
    user: Ints  # (N,) index into users
    window: Ints  # (N,) index into cutoffs_ms
    features: Floats  # (N, F)
    value: Values  # (N, H) max(0, net value in the horizon)
    between: Bools  # (N, H) a positive value event since the horizon before
    mask: Bools  # (N, H) mature
    sequence: Ints  # (N,) index of the sequence whose prefix the row's carry has taken
    position: Ints  # (N,) steps taken of it
    tokens: Floats  # (S, T)
    starts: Ints  # (Q + 1,)
    seen_types: tuple[str, ...]
    log_start_ms: int
    clock_ms: int  # log clock: labels reach no further
    extra: Floats  # (N, E) columns beside `features`
    extra_names: tuple[str, ...]  # (E,)
    table: Table | None  # neighbours at the log's clock; None where the log has no edge
    words: Floats  # (N, WORDS) hashed words, rows of length 1 or 0; (N, 0) where not folded

    def __len__(self) -> int:
        return len(self.user)

    def rows(self, keep: npt.NDArray[np.integer] | Bools) -> Examples:
        """Some of the rows; users and sequences stay as they are."""
        names = (
            *("user", "window", "features", "extra", "value", "between", "mask"),
            *("sequence", "position", "words"),
        )
        return replace(self, **{name: getattr(self, name)[keep] for name in names})

    @property
    def names(self) -> tuple[str, ...]:
        """All columns there are, those of `features` first."""
        return (*FEATURE_NAMES, *self.extra_names)

    @property
    def readable(self) -> frozenset[str]:
        """Columns that a generation may read of these rows."""
        words = INTEREST_NAMES if self.words.shape[1] else ()
        return frozenset((*self.names, *words, *NEAR_NAMES))

    def read(self, names: Sequence[str], directions: Directions | None = None) -> Floats:
        """(N, F) these columns, as a generation's manifest names them; none named: `features`.

        `directions`: the generation's, where it reads interests. Neighbours are 0 where the log
        has no edge.
        """
        if not names or tuple(names) == FEATURE_NAMES:
            return self.features
        there, parts = self.names, [self.features, self.extra]
        if directions is not None:
            there = (*there, *INTEREST_NAMES)
            parts.append(directions(self.words))
        if NEAR_NAMES[0] not in there:
            there = (*there, *NEAR_NAMES)
            parts.append(np.zeros((len(self), len(NEAR_NAMES)), np.float32))
        at = positions(there, names)
        every = np.concatenate(parts, axis=1)
        return every if at is None else every[:, at]

    @property
    def active(self) -> Bools:
        """(N, H) at least one positive value event in the horizon."""
        return np.logical_or.accumulate(self.between, axis=1)

    def increments(self) -> Values:
        """(N, H) value between neighbouring horizons, never negative.

        A user who returns goods within the longer horizon has a smaller clipped net there; the
        running maximum keeps horizons ordered, the calibrated level takes back what it adds.
        """
        return np.diff(np.maximum.accumulate(self.value, axis=1), axis=1, prepend=0.0)


def rolling_cutoffs(
    start_ms: int, clock_ms: int, horizons_s: Sequence[int], lateness_ms: int, most: int = 12
) -> Ints:
    """Evenly spaced cut-offs with mature labels of at least the shortest horizon.

    From a tenth of the log on, so that there is a past to learn from; the last is the newest for
    which the shortest horizon is mature. Empty where the log is too short.
    """
    last = clock_ms - lateness_ms - horizons_s[0] * 1000
    first = start_ms + max((last - start_ms) // 10, min(horizons_s[0] * 1000, 7 * DAY_MS))
    if last <= first:
        return np.empty(0, np.int64)
    count = int(np.clip((last - first) // DAY_MS + 1, 2, most))
    return np.linspace(first, last, count).astype(np.int64)


class ExampleBuilder:
    """Folds a log once and takes examples at fixed cut-offs.

    `add` wants each partition's batches in order of log time; one batch may mix sources.
    """

    def __init__(
        self,
        features: FeatureSettings,
        sources: Sequence[str],
        horizons_s: Sequence[int],
        cutoffs_ms: Ints,
        log_start_ms: int | None = None,
        lateness_ms: int | None = None,
        share: float = 1.0,
    ) -> None:
        """`lateness_ms`: after which labels are mature; None takes the settings' largest."""
        self._features = features
        self._fold_settings = FoldSettings.of(features, sources)
        self._horizons_s = tuple(horizons_s)
        self._cutoffs = np.sort(np.asarray(cutoffs_ms, np.int64))
        self._log_start_ms = log_start_ms
        largest = int(self._fold_settings.lateness_ms.max())
        self._lateness_ms = largest if lateness_ms is None else lateness_ms
        self._share = share
        self._partitions: dict[int, _Partition] = {}
        self._users: list[str] = []
        self._erased_ms: list[int] = []  # records of the user up to here are forgotten
        self._kinds: set[int] = set()
        self._first_ms: int | None = None
        self._clock_ms = 0
        self._rows: list[_Rows] = []
        self._sequences: list[bytes] = []
        self._values: list[tuple[Ints, Ints, Ints, Ints]] = []  # user, time, micro, record
        self._edges = Edges(self._cutoffs, self._fold_settings.half_lives_ms[1])

    def add(self, partition: int, batch: EventBatch) -> None:
        """Fold one batch, stopping at the cut-offs within it."""
        part = self._partitions.get(partition)
        if part is None:
            sources = len(self._fold_settings.lateness_ms)
            part = self._partitions[partition] = _Partition(Clocks.start(sources))
        if batch.size:
            self._clock_ms = max(self._clock_ms, int(batch.log_ms.max()))
            self._kinds.update(np.unique(batch.events["kind"]).tolist())
            first = int(batch.events["time_ms"].min())
            self._first_ms = first if self._first_ms is None else min(first, self._first_ms)
        times = [int(batch.log_ms.max())] if batch.size else []
        newest = max([*times, *(e.record_ms for e in batch.erases)], default=0)
        while part.next < len(self._cutoffs) and self._cutoffs[part.next] <= newest:
            cut = int(self._cutoffs[part.next])
            before, batch = split(batch, cut)
            self._fold(part, before)
            self._take(part, cut)
        self._fold(part, batch)

    def finish(self, known_until_ms: int | None = None) -> Examples:
        """Take the cut-offs that no later event has closed, label all rows.

        `known_until_ms`: the log is known to hold all that arrived before it, though its last
        event is older (a day-stamped file, a quiet night); None: up to its last event.
        """
        if known_until_ms is not None:
            self._clock_ms = max(self._clock_ms, known_until_ms)
        for part in self._partitions.values():
            while part.next < len(self._cutoffs) and self._cutoffs[part.next] <= self._clock_ms:
                self._take(part, int(self._cutoffs[part.next]))
        for part in self._partitions.values():
            for open_ in part.open.values():
                self._sequences[open_.index] = open_.tokens
        return self._with_neighbours(self._labelled())

    def _fold(self, part: _Partition, batch: EventBatch) -> None:
        if not batch.size and not batch.erases:
            return
        users = batch.users
        kept = [self._keeps(user) for user in users]
        states = States.decode(users, [part.blobs.get(user) for user in users])
        folded = fold(states, batch, part.clocks, self._fold_settings)
        part.clocks = folded.clocks
        index = np.array(
            [self._row(part, u) if k else -1 for u, k in zip(users, kept, strict=True)], np.int64
        )
        changed = folded.states.encode()
        for user, keep, blob in zip(users, kept, changed, strict=True):
            if keep:
                part.blobs[user] = blob
        for erase in batch.erases:
            row = int(index[erase.user])
            if row >= 0:
                self._erased_ms[row] = max(self._erased_ms[row], erase.record_ms)
        self._remember_values(batch, folded, index)
        self._remember_edges(batch, folded)
        part.step(folded, index)

    def _keeps(self, user: str) -> bool:
        return drawn(user, self._share)

    def _row(self, part: _Partition, user: str) -> int:
        row = part.row.get(user)
        if row is None:
            row = part.row[user] = len(self._users)
            self._users.append(user)
            self._erased_ms.append(NO_TIME)
        return row

    def _remember_values(self, batch: EventBatch, folded: Folded, index: Ints) -> None:
        events = batch.events
        user = index[batch.user]
        good = (folded.outcome == Outcome.APPLIED) | (folded.outcome == Outcome.APPLIED_LATE)
        at = np.flatnonzero(good & (events["value_micro"] != 0) & (user >= 0))
        if len(at):
            chosen = events[at]
            self._values.append(
                (user[at], chosen["time_ms"], chosen["value_micro"], chosen["record_ms"])
            )

    def _remember_edges(self, batch: EventBatch, folded: Folded) -> None:
        if not batch.target:
            return
        good = folded.outcome <= Outcome.APPLIED_LATE
        at = [i for i in np.flatnonzero(good).tolist() if batch.target[i]]
        targets = [target for target in batch.targets(np.array(at, np.intp)) if target]
        events = batch.events[at]
        sources = [batch.users[u] for u in batch.user[at].tolist()]
        self._edges.add(sources, targets, events["time_ms"], batch.log_ms[at], events["record_ms"])

    def _encoded(self, part: _Partition, at_ms: int) -> Iterator[tuple[list[str], Floats, Floats]]:
        """(users, columns of the fold, words) of a partition's known users, in chunks."""
        names = [user for user in part.row if user in part.blobs]
        for start in range(0, len(names), CHUNK):
            some = names[start : start + CHUNK]
            states = States.decode(some, [part.blobs[user] for user in some])
            known = np.flatnonzero(states.known())
            if not len(known):
                continue
            states = states.select(known)
            as_of = np.maximum(states.head["last_ms"], at_ms)
            made = encode(states, as_of[:, None], self._log_start_ms, self._features)
            words = interests(states.head) if self._features.interests else made[:, 0, :0]
            yield states.users, made[:, 0], words

    def _take(self, part: _Partition, cut: int) -> None:
        """Encode every user of a partition that was seen before the cut-off."""
        window = part.next
        part.next += 1
        for users, features, words in self._encoded(part, cut):
            rows = np.array([part.row[user] for user in users], np.int64)
            taken = [self._sequence(part, row) for row in rows.tolist()]
            self._rows.append(
                _Rows(
                    rows,
                    np.full(len(rows), window, np.int64),
                    features[:, : len(FEATURES)],
                    features[:, len(FEATURES) :],
                    words,
                    np.array([s for s, _ in taken], np.int64),
                    np.array([p for _, p in taken], np.int64),
                )
            )

    def _sequence(self, part: _Partition, row: int) -> tuple[int, int]:
        """(sequence, position) of a user's head: the open sequence where it only grew."""
        now = bytes(part.head.get(row, b""))
        open_ = part.open.get(row)
        if open_ is not None and now.startswith(open_.tokens):
            open_.tokens = now
        else:
            if open_ is not None:
                self._sequences[open_.index] = open_.tokens
            open_ = part.open[row] = _Open(len(self._sequences), now)
            self._sequences.append(b"")
        return open_.index, len(now) // _TOKEN_BYTES

    def _labelled(self) -> Examples:
        none = np.empty(0, np.int64)
        # what an erasure forgets leaves neither a row nor a label behind
        erased_ms = np.array(self._erased_ms, np.int64)
        beyond = len(table(self._features)) - len(FEATURES)
        made = _Rows.join(self._rows, beyond, WORDS if self._features.interests else 0)
        made = made.only(self._cutoffs[made.window] > erased_ms[made.user])
        joined = [np.concatenate(c) for c in zip(*self._values, strict=True)] or [none] * 4
        user, time_ms, micro, record_ms = joined
        alive = record_ms > erased_ms[user]
        labels = _Labels(user[alive], time_ms[alive], micro[alive])
        cut = self._cutoffs[made.window]
        edges = np.array([0, *self._horizons_s], np.int64) * 1000
        net = np.empty((len(cut), len(edges) - 1), np.int64)
        between = np.empty(net.shape, bool)
        for h in range(len(edges) - 1):
            net[:, h] = labels.sums(made.user, cut, cut + edges[h + 1])
            between[:, h] = labels.orders(made.user, cut + edges[h], cut + edges[h + 1]) > 0
        lengths = np.array([len(s) // _TOKEN_BYTES for s in self._sequences], np.int64)
        return Examples(
            users=self._users,
            cutoffs_ms=self._cutoffs,
            horizons_s=self._horizons_s,
            user=made.user,
            window=made.window,
            features=made.features,
            value=np.maximum(net, 0) / MICRO,
            between=between,
            mask=cut[:, None] + edges[1:] + self._lateness_ms <= self._clock_ms,
            sequence=made.sequence,
            position=made.position,
            tokens=np.frombuffer(b"".join(self._sequences), np.float32).reshape(-1, len(TOKENS)),
            starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            seen_types=tuple(kind.name.lower() for kind in Kind if kind in self._kinds),
            log_start_ms=self._first_ms or 0,
            clock_ms=self._clock_ms,
            extra=made.edges,
            extra_names=tuple(f.name for f in table(self._features)[len(FEATURES) :]),
            table=None,
            words=made.words,
        )

    def _with_neighbours(self, rows: Examples) -> Examples:
        """Rows with what is known of neighbours at their cut-offs; and the table of the clock."""
        if not len(self._edges):
            return rows
        erased = {
            self._users[row]: marker
            for row, marker in enumerate(self._erased_ms)
            if marker != NO_TIME
        }
        node = {name: at for at, name in enumerate(self._edges.names)}
        place = np.array([node.get(user, len(node)) for user in self._users], np.int64)
        near = np.zeros((len(rows), len(NEAR_NAMES)), np.float32)
        for window, cut in enumerate(self._cutoffs.tolist()):
            at = np.flatnonzero(rows.window == window)
            if len(at):
                users = [self._users[u] for u in rows.user[at].tolist()]
                found = self._edges.near(cut, users, worth(rows.features[at]), erased)
                # whoever is no node has no neighbour
                found = np.concatenate([found, np.zeros((1, found.shape[1]), np.float32)])
                near[at] = found[place[rows.user[at]]]
        return replace(
            rows,
            extra=np.concatenate([rows.extra, near], axis=1),
            extra_names=(*rows.extra_names, *NEAR_NAMES),
            table=self._table_now(erased),
        )

    def _table_now(self, erased: dict[str, int]) -> Table:
        """What is known of neighbours at the log's clock, of all users of the graph."""
        parts = [
            (users, worth(features))
            for part in self._partitions.values()
            for users, features, _ in self._encoded(part, self._clock_ms)
        ]
        users = [user for some, _ in parts for user in some]
        values = np.concatenate([np.zeros((0, 3), np.float32), *(value for _, value in parts)])
        near = self._edges.near(self._clock_ms, users, values, erased)
        # Who was erased and has not come back is in no file, though others have addressed him.
        gone = erased.keys() - set(users)
        kept = [at for at, name in enumerate(self._edges.names) if name not in gone]
        names = self._edges.names
        return Table.of([names[at] for at in kept], near[kept], self._clock_ms)


_TOKEN_BYTES = 4 * len(TOKENS)


@dataclass(slots=True)
class _Open:
    """A sequence that later cut-offs may extend."""

    index: int
    tokens: bytes


@dataclass(slots=True)
class _Partition:
    """One partition's fold: states as blobs, tokens of the settled part and of the head."""

    clocks: Clocks
    next: int = 0  # index of the next cut-off
    row: dict[str, int] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    settled: dict[int, bytearray] = field(default_factory=dict)
    head: dict[int, bytearray] = field(default_factory=dict)
    open: dict[int, _Open] = field(default_factory=dict)

    def step(self, folded: Folded, index: Ints) -> None:
        """Append the fold's steps as the scorer applies them to carries."""
        for row in index[np.flatnonzero(folded.settled_reset)].tolist():
            self.settled.pop(row, None)
        _append(self.settled, folded.settled_steps, index)
        for row in index[np.flatnonzero(folded.head_reset)].tolist():
            if row >= 0:
                self.head[row] = self.settled.get(row, bytearray()).copy()
        _append(self.head, folded.head_steps, index)


def _append(to: dict[int, bytearray], steps: Steps, index: Ints) -> None:
    raw = np.ascontiguousarray(steps.tokens, np.float32).tobytes()
    for at, row in enumerate(index[steps.rows].tolist()):
        if row >= 0:
            tokens = to.get(row)
            if tokens is None:
                tokens = to[row] = bytearray()
            tokens += raw[at * _TOKEN_BYTES : (at + 1) * _TOKEN_BYTES]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one chunk at one cut-off, before they are labelled."""

    user: Ints
    window: Ints
    features: Floats
    edges: Floats
    words: Floats
    sequence: Ints
    position: Ints

    @classmethod
    def join(cls, parts: Sequence[_Rows], edges: int, words: int) -> _Rows:
        if not parts:
            none = np.empty(0, np.int64)
            sizes = (len(FEATURES), edges, words)
            features, extra, hashed = (np.empty((0, size), np.float32) for size in sizes)
            return cls(none, none, features, extra, hashed, none, none)
        names = cls.__slots__
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))

    def only(self, keep: Bools) -> _Rows:
        return _Rows(*(getattr(self, name)[keep] for name in self.__slots__))


class _Labels:
    """Sums over spans of event time, by user, exact in millionths."""

    def __init__(self, user: Ints, time_ms: Ints, micro: Ints) -> None:
        order = np.lexsort((time_ms, user))
        user, time_ms, micro = user[order], time_ms[order], micro[order]
        self._base = int(time_ms.min()) if len(time_ms) else 0
        self._key = (user << 42) + (time_ms - self._base)
        self._sum = np.concatenate([[0], np.cumsum(micro)])
        self._orders = np.concatenate([[0], np.cumsum(micro > 0)])

    def _at(self, user: Ints, time_ms: Ints) -> Ints:
        span = np.clip(time_ms - self._base, 0, (1 << 42) - 1)
        return np.searchsorted(self._key, (user << 42) + span).astype(np.int64)

    def sums(self, user: Ints, start_ms: Ints, end_ms: Ints) -> Ints:
        """Net value in [start, end)."""
        found: Ints = self._sum[self._at(user, end_ms)] - self._sum[self._at(user, start_ms)]
        return found

    def orders(self, user: Ints, start_ms: Ints, end_ms: Ints) -> Ints:
        """Positive value events in [start, end)."""
        found: Ints = self._orders[self._at(user, end_ms)] - self._orders[self._at(user, start_ms)]
        return found


def split(batch: EventBatch, cut: int) -> tuple[EventBatch, EventBatch]:
    """What reached the log before `cut`, and the rest; users stay numbered as they are."""
    early = batch.log_ms < cut
    return (
        _part(batch, early, [e for e in batch.erases if e.record_ms < cut]),
        _part(batch, ~early, [e for e in batch.erases if e.record_ms >= cut]),
    )


def _part(batch: EventBatch, keep: Bools, erases: list[Erase]) -> EventBatch:
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


def build(
    log: Log,
    features: FeatureSettings,
    sources: Sequence[str],
    horizons_s: Sequence[int],
    cutoffs_ms: Ints,
    log_start_ms: int | None = None,
    lateness_ms: int | None = None,
    share: float = 1.0,
) -> Examples:
    """Examples of a whole log: `ExampleBuilder` over it."""
    builder = ExampleBuilder(
        features, sources, horizons_s, cutoffs_ms, log_start_ms, lateness_ms, share
    )
    for partition, batch in log:
        builder.add(partition, batch)
    return builder.finish()
