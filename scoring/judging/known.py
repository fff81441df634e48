"""What was known of users at given instants: states and carries, through the same fold as live.

A question is a user and an instant c; the answer is the state that a worker would have held after
all that had arrived before c (log time < c). Questions of many users at many instants are answered
in one reading of the log: within each batch a question becomes a user of its own, who starts from
the asked user's state before the batch and takes copies of his events before c. So clocks,
lateness and duplicates are decided as they were, and an answer costs a user's events of one batch
rather than his whole past.

Erasures are folded, but a question about a user whom a later record erases is answered as it would
have been then: leave such users out where that matters (`erased`).

Shapes: Q questions, U users answered at once, C carry size. Times are integer milliseconds, UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from featurestore.clock import Clocks
from featurestore.columns import EventBatch
from featurestore.fold import FoldSettings, fold
from featurestore.settings import FeatureSettings
from featurestore.state import States
from scoring.interface import Floats
from scoring.judging.history import Log
from scoring.scorer import Scorer

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Known:
    """Answers to some of the questions; a user of whom nothing was known has an empty state."""

    question: Ints  # (U,) which ones
    states: States
    head: Floats  # (U, C)


def erased(log: Log) -> set[str]:
    """Users whom the log erases at some time."""
    return {batch.users[erase.user] for _, batch in log for erase in batch.erases}


def known_at(
    log: Log,
    users: Sequence[str],
    cut_ms: Ints,
    scorer: Scorer,
    features: FeatureSettings,
    sources: Sequence[str],
) -> Iterator[Known]:
    """Answers to Q questions: what was known of `users` before `cut_ms` (Q,).

    log: each partition in log order. Every question is answered once; in which order is open.
    """
    asked = np.asarray(cut_ms, np.int64)
    by_user: dict[str, list[int]] = {}
    for number, user in enumerate(users):
        by_user.setdefault(user, []).append(number)
    home: dict[str, int] = {}
    partitions: dict[int, list[EventBatch]] = {}
    for partition, batch in log:
        partitions.setdefault(partition, []).append(batch)
        for user in batch.users:
            if user in by_user:
                home.setdefault(user, partition)
    settings = FoldSettings.of(features, sources)
    for partition, batches in partitions.items():
        mine = [q for user, qs in by_user.items() if home.get(user) == partition for q in qs]
        if mine:
            ordered = np.array(mine, np.int64)
            ordered = ordered[np.argsort(asked[ordered], kind="stable")]
            yield from _Partition(scorer, settings, users, asked).answers(batches, ordered)
    never = [q for user, qs in by_user.items() if user not in home for q in qs]
    if never:
        names = [users[q] for q in never]
        yield Known(np.array(never, np.int64), States.empty(names), scorer.start(len(never)))


@dataclass(slots=True)
class _Held:
    """What is kept of one user between batches."""

    blob: bytes
    settled: Floats  # (C,)
    head: Floats  # (C,)


@dataclass(slots=True)
class _Partition:
    """One partition's log, read once."""

    scorer: Scorer
    settings: FoldSettings
    users: Sequence[str]
    cut_ms: Ints
    held: dict[str, _Held] = field(default_factory=dict)

    def answers(self, batches: Sequence[EventBatch], questions: Ints) -> Iterator[Known]:
        """`questions` by rising instant."""
        clocks = Clocks.start(len(self.settings.lateness_ms))
        wanted = {self.users[q] for q in questions.tolist()}
        done = 0
        for batch in batches:
            until = done
            if batch.size:
                newest = int(batch.log_ms.max())
                until = int(np.searchsorted(self.cut_ms[questions], newest, side="right"))
                until = max(until, done)
            now, done = questions[done:until], until
            yield from self._fold(batch, now, clocks, wanted)
            clocks = self._clocks
        rest = questions[done:]
        if len(rest):
            yield from self._fold(EventBatch.empty(), rest, clocks, wanted)

    _clocks: Clocks = field(init=False)

    def _fold(
        self, batch: EventBatch, now: Ints, clocks: Clocks, wanted: set[str]
    ) -> Iterator[Known]:
        """Fold one batch, with the questions `now` as users behind its own."""
        rows = {user: row for row, user in enumerate(batch.users)}
        by_row = np.argsort(batch.user, kind="stable")
        starts = np.searchsorted(batch.user[by_row], np.arange(len(rows) + 1))
        copies, copied = [], []
        for n, q in enumerate(now.tolist()):
            row = rows.get(self.users[q])
            if row is not None:
                own = by_row[starts[row] : starts[row + 1]]
                own = own[batch.log_ms[own] < self.cut_ms[q]]
                copies.append(own)
                copied.append(np.full(len(own), len(rows) + n))
        at = np.concatenate([np.arange(batch.size), *copies]).astype(np.int64)
        who = np.concatenate([batch.user, *copied]).astype(np.int32)
        order = np.argsort(at, kind="stable")
        at, who = at[order], who[order]
        names = [*batch.users, *(self.users[q] for q in now.tolist())]
        # names repeat: the fold tells its users apart by their rows
        ids = [batch.event_id[i] for i in at.tolist()] if batch.event_id else []
        asked = EventBatch(
            names, who, batch.events[at], batch.offset[at], batch.log_ms[at], batch.erases, ids
        )
        before = [self.held.get(name) for name in names]
        states = States.decode(names, [b.blob if b else None for b in before])
        settled, head = self.scorer.start(len(names)), self.scorer.start(len(names))
        for row, b in enumerate(before):
            if b is not None:
                settled[row], head[row] = b.settled, b.head
        folded = fold(states, asked, clocks, self.settings)
        self._clocks = folded.clocks
        settled, head = self.scorer.advance(folded, settled, head)
        kept = np.array([r for user, r in rows.items() if user in wanted], np.int64)
        blobs = folded.states.select(kept).encode() if len(kept) else []
        for row, blob in zip(kept.tolist(), blobs, strict=True):
            self.held[batch.users[row]] = _Held(blob, settled[row].copy(), head[row].copy())
        if len(now):
            mine = np.arange(len(rows), len(names))
            yield Known(now, folded.states.select(mine), head[mine])
