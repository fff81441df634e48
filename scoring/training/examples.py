"""Point-in-time training rows: what was known of a user at a cut-off, and what came after.

The log goes through `featurestore.fold`, as live; at each cut-off c what had arrived by c (log
time < c) is encoded as of c, for every user seen, and nothing later is looked at. So a row is the
vector that a live score of that instant would have used. The carry is not stored but the tokens
that step it (scoring.training.sequences).

Labels: net value in event time [c, c + horizon) and whether a positive value event lies in it
(scoring.training.labels). Only mature ones are marked: c + horizon + lateness <= the log's clock.

Memory: one blob per kept user, as in the store, and the rows. `share` keeps a part of the users
(by hash of the name) where that is too much; the clocks still see every event.

Shapes as in scoring.training.rows. Times are integer milliseconds, UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from featurestore.clock import Clocks
from featurestore.columns import NO_TIME, EventBatch, Kind, Outcome, split
from featurestore.events import WORDS
from featurestore.features import FEATURES, table
from featurestore.fold import Folded, FoldSettings, fold
from featurestore.settings import FeatureSettings
from featurestore.state import States
from featurestore.vector import encode, interests
from scoring.interface import Floats
from scoring.social import NEAR_NAMES, Table
from scoring.training.draws import drawn
from scoring.training.labels import ValueEvents
from scoring.training.rows import Examples
from scoring.training.sequences import Sequences
from scoring.training.social_graph import Edges, worth

__all__ = [
    "DAY_MS",
    "ExampleBuilder",
    "Examples",
    "Log",
    "build",
    "labels_from_ms",
    "rolling_cutoffs",
]

DAY_MS = 86_400_000
TENTH = 10  # of a log is past before the first of its cut-offs
CHUNK = 4096  # users decoded at once when a cut-off is taken

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Log = Iterable[tuple[int, EventBatch]]  # (partition, batch), each partition in log order


def rolling_cutoffs(
    start_ms: int, clock_ms: int, horizons_s: Sequence[int], lateness_ms: int, most: int = 12
) -> Ints:
    """Evenly spaced cut-offs with mature labels of at least the shortest horizon.

    From a tenth of the log on, so that there is a past to learn from; the last is the newest for
    which the shortest horizon is mature. Empty where the log is too short.
    """
    last = clock_ms - lateness_ms - horizons_s[0] * 1000
    first = start_ms + max((last - start_ms) // TENTH, _least_past_ms(horizons_s))
    if last <= first:
        return np.empty(0, np.int64)
    count = int(np.clip((last - first) // DAY_MS + 1, 2, most))
    return np.linspace(first, last, count).astype(np.int64)


def labels_from_ms(
    start_ms: int, horizons_s: Sequence[int], lateness_ms: int, horizon_s: int
) -> int:
    """What a log's clock must show for `rolling_cutoffs` to hold a mature label of a horizon.

    That is first cut-off + horizon + lateness; the first cut-off moves on while the log grows.

    >>> days = [labels_from_ms(0, (7 * 86400, 90 * 86400), 0, s * 86400) for s in (7, 90)]
    >>> [round(at / DAY_MS, 1) for at in days]
    [14.0, 99.2]
    """
    reach = horizon_s * 1000 + lateness_ms
    shortest = horizons_s[0] * 1000 + lateness_ms
    # The past is a tenth of all up to the last cut-off: past = (clock - shortest) / TENTH.
    grown = -((shortest - TENTH * reach) // (TENTH - 1))
    return start_ms + max(_least_past_ms(horizons_s) + reach, grown)


def _least_past_ms(horizons_s: Sequence[int]) -> int:
    return min(horizons_s[0] * 1000, 7 * DAY_MS)


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
        self._outcomes = np.zeros(len(Outcome), np.int64)
        self._rows: list[_Rows] = []
        self._sequences = Sequences()
        self._values = ValueEvents()
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
        kept_events = folded.outcome[index[batch.user] >= 0]
        self._outcomes += np.bincount(kept_events, minlength=len(Outcome))
        self._remember_values(batch, folded, index)
        self._remember_edges(batch, folded)
        self._sequences.step(folded, index)

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
            self._values.add(
                user[at], chosen["time_ms"], chosen["value_micro"], chosen["record_ms"]
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
            made = encode(states, as_of[:, None], self._log_start_ms, self._features, held=True)
            words = interests(states.head) if self._features.interests else made[:, 0, :0]
            yield states.users, made[:, 0], words

    def _take(self, part: _Partition, cut: int) -> None:
        """Encode every user of a partition that was seen before the cut-off."""
        window = part.next
        part.next += 1
        for users, features, words in self._encoded(part, cut):
            rows = np.array([part.row[user] for user in users], np.int64)
            taken = [self._sequences.at(row) for row in rows.tolist()]
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

    def _labelled(self) -> Examples:
        # what an erasure forgets leaves neither a row nor a label behind
        erased_ms = np.array(self._erased_ms, np.int64)
        more = table(self._features, held=True)[len(FEATURES) :]
        made = _Rows.join(self._rows, len(more), WORDS if self._features.interests else 0)
        made = made.only(self._cutoffs[made.window] > erased_ms[made.user])
        cut = self._cutoffs[made.window]
        value, between = self._values.labels(made.user, cut, self._horizons_s, erased_ms)
        tokens, starts = self._sequences.joined()
        ends = cut[:, None] + np.array(self._horizons_s, np.int64) * 1000
        return Examples(
            users=self._users,
            cutoffs_ms=self._cutoffs,
            horizons_s=self._horizons_s,
            user=made.user,
            window=made.window,
            features=made.features,
            value=value,
            between=between,
            mask=ends + self._lateness_ms <= self._clock_ms,
            sequence=made.sequence,
            position=made.position,
            tokens=tokens,
            starts=starts,
            seen_types=tuple(kind.name.lower() for kind in Kind if kind in self._kinds),
            log_start_ms=self._first_ms or 0,
            clock_ms=self._clock_ms,
            extra=made.extra,
            extra_names=tuple(f.name for f in more),
            table=None,
            words=made.words,
            outcomes={o.name.lower(): int(self._outcomes[o]) for o in Outcome},
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


@dataclass(slots=True)
class _Partition:
    """One partition's fold: its clocks, its users' states as blobs."""

    clocks: Clocks
    next: int = 0  # index of the next cut-off
    row: dict[str, int] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one chunk at one cut-off, before they are labelled."""

    user: Ints
    window: Ints
    features: Floats
    extra: Floats
    words: Floats
    sequence: Ints
    position: Ints

    @classmethod
    def join(cls, parts: Sequence[_Rows], extra: int, words: int) -> _Rows:
        if not parts:
            none = np.empty(0, np.int64)
            sizes = (len(FEATURES), extra, words)
            features, beside, hashed = (np.empty((0, size), np.float32) for size in sizes)
            return cls(none, none, features, beside, hashed, none, none)
        names = cls.__slots__
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))

    def only(self, keep: Bools) -> _Rows:
        return _Rows(*(getattr(self, name)[keep] for name in self.__slots__))


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
