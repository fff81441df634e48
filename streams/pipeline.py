"""The one path from events to values: load, fold, advance, rescore, commit.

Live workers, replay, backfill and tests all enter here, so the same log gives the same values
whoever reads it. This module knows neither Faust nor Kafka: it is given decoded events and the
positions at which they end, and answers with what was committed and what is to be published.

Times are integer milliseconds, UTC.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from featurestore import times
from featurestore.clock import Clocks
from featurestore.columns import NO_ID, NO_TIME, EventBatch, Kind, Outcome
from featurestore.fold import Folded, FoldSettings, fold
from featurestore.state import States, history
from featurestore.store import (
    Commit,
    CommitOutcome,
    FeatureStore,
    Identity,
    Letter,
    Loaded,
    Watermark,
    Write,
)
from scoring.documents import Cause, Documents
from scoring.scorer import Scorer
from streams import crashpoints
from streams.deadletter import Reason, Rejected
from streams.erasing import forget_elsewhere
from streams.fingerprint import Fingerprint
from streams.row import join, split
from streams.settings import Settings

_PARKED = {
    Outcome.LATE: Reason.LATE,
    Outcome.CONFLICT: Reason.CONFLICT,
    Outcome.FUTURE: Reason.FUTURE,
}


@dataclass(frozen=True, slots=True)
class Positions:
    """Where a step ends in each source, and what the log looked like there."""

    positions: tuple[int, ...]
    marks: tuple[str, ...]
    log_id: str
    idle: tuple[bool, ...]
    trails: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Base:
    """Files that a store was folded from before its log: by hash, up to a cut.

    Records of the log with an event time before `cut_ms` are then skipped, so that a
    warehouse's export and the log's last days are not counted twice.

    >>> Base.parse(Base("3f9c", 1000, 7).text()).cut_ms
    1000
    """

    files: str  # hash of the files' contents
    cut_ms: int | None  # None: everything in the files
    steps: int  # folded so far, so that a backfill can go on where it stopped

    def text(self) -> str:
        """As it stands in the watermark."""
        return json.dumps([self.files, self.cut_ms, self.steps])

    @classmethod
    def parse(cls, text: str) -> Base:
        """Inverse of `text`."""
        return cls(*json.loads(text))


@dataclass(slots=True)
class Processed:
    """What became of one step.

    outcome None: the watermark that was read is not the expected one ("moved"): forget and claim.
    split: the step is too large for one commit (`counts` has its bytes); nothing was written, call
    again with less.
    """

    outcome: CommitOutcome | None
    watermark: Watermark
    updates: dict[str, bytes] = field(default_factory=dict)  # user -> document, b"" = tombstone
    letters: list[Letter] = field(default_factory=list)
    split: bool = False
    counts: Counter[str] = field(default_factory=Counter)


def sweeping(progress: str) -> bool:
    """Whether a watermark's progress names a sweep that has not ended.

    >>> sweeping(""), sweeping('{"sweep": ""}'), sweeping('{"sweep": null}')
    (False, True, False)
    """
    return bool(progress) and json.loads(progress)["sweep"] is not None


@dataclass(slots=True)
class _Users:
    """Loaded users: states, carries and the last documents' curves, in one order."""

    states: States
    settled: npt.NDArray[np.float32]  # (U, C)
    head: npt.NDArray[np.float32]  # (U, C)
    last: npt.NDArray[np.void]  # (U,) scorer's LAST: revision, as_of_ms, curve


class Pipeline:
    """Folds and scores batches of one deployment into one store with one generation."""

    def __init__(
        self,
        store: FeatureStore,
        scorer: Scorer,
        settings: Settings,
        *,
        publishes: bool = True,
        progress: str = "",
    ) -> None:
        self.store = store
        self.scorer = scorer
        self.settings = settings
        self.publishes = publishes
        self._progress = progress  # of a store that this pipeline begins
        self._fold = FoldSettings.of(settings.features, settings.kafka.sources)
        self._cut_folds: dict[int, FoldSettings] = {}
        self.generation = scorer.generation.id
        self.fingerprint = Fingerprint(settings, self.generation)
        self.documents = Documents(settings.value, settings.model, scorer.generation)
        self._max_bytes = int(settings.store.max_commit_mib * (1 << 20))

    async def process(
        self,
        partition: int,
        token: str,
        before: Watermark | None,
        after: Positions,
        batch: EventBatch,
        rejected: Sequence[Rejected],
        *,
        seq_at_least: int = 0,
        capped: bool = True,
        base: str | None = None,
    ) -> Processed:
        """Fold `batch` and everything it changes into the store, in one atomic commit.

        before: the watermark that the caller believes in, None for a partition never folded.
        after: where the batch ends. rejected: what could not be decoded up to there.
        capped: a step too large for one commit is refused with `split`.
        base: given while files are folded as the store's base; see `Base`.
        Raises StoreUnavailable with an unknown outcome: forget and claim again. Raises
        StoreMismatch where the store was folded with other settings.
        """
        await self.fingerprint.check(self.store, before)
        if before is None:
            await self.fingerprint.keep(self.store)
        loaded = await self.store.load(partition, batch.users)
        if not _same(loaded, token, before):
            return Processed(None, _or_empty(before, after, self))
        users = self._unpack(batch.users, loaded.states)
        if before is not None and sweeping(before.progress):
            await self._recall(partition, users)
        crashpoints.passing("after_load")
        clocks = _clocks(before, after, len(self.settings.kafka.sources))
        folded = fold(users.states, batch, clocks, self._fold_settings(before, base))
        # An erasure takes what was said, too: `previous` would tell of it, where the user's next
        # event stands in the same batch.
        told = users.states.erased_ms != folded.states.erased_ms
        users.last[told] = self.scorer.no_last(int(told.sum()))
        users.states = folded.states
        users.settled, users.head = self.scorer.advance(folded, users.settled, users.head)

        seq = max(before.identity.seq if before else 0, seq_at_least) + 1
        watermark = Watermark(
            positions=after.positions,
            clocks=tuple(int(t) for t in folded.clocks.times_ms),
            identity=Identity(seq, token),
            log_id=after.log_id,
            marks=after.marks,
            fingerprint=self.fingerprint.text,
            generation=self.generation,
            base=base if base is not None else (before.base if before else ""),
            published=before.published if before else None,
            progress=before.progress if before else self._progress,
            idle=after.idle,
            trails=after.trails,
        )
        erased = np.zeros(len(batch.users), bool)
        erased[folded.erased] = True
        touched = np.flatnonzero(folded.touched & ~erased)
        causes = self._causes(partition, batch, folded, touched)
        writes = self._writes(users, touched, seq, causes, None)
        writes += self._wipes(users, np.flatnonzero(erased))
        letters = _letters(batch, folded, rejected)
        crashpoints.passing("after_compute")
        if batch.erases and self.publishes:
            await forget_elsewhere(self.store, partition, batch, self._fold)
        # One record cannot be halved: it goes through, the store's own limit is far higher.
        cap = capped and batch.size + len(batch.erases) + len(rejected) > 1
        done = await self._commit(partition, token, before, watermark, writes, letters, cap=cap)
        done.counts.update(_counts(batch, folded, rejected))
        return done

    async def refresh(
        self,
        partition: int,
        token: str,
        before: Watermark,
        users: Sequence[str],
        as_of_ms: int | None,
        cause: str,
        *,
        seq_at_least: int = 0,
        progress: str = "",
    ) -> Processed:
        """Publish `users` again, without moving a position.

        cause: "silence" (time has passed), "generation" (another model), "recover" (after a
        roll-back of Redis). as_of_ms None keeps each user's own time. `progress` is kept in the
        watermark with the rest, so that a roll-back redoes what it undid.
        """
        await self.fingerprint.check(self.store, before)
        loaded = await self.store.load(partition, users)
        seq = max(before.identity.seq, seq_at_least) + 1
        watermark = Watermark(
            positions=before.positions,
            clocks=before.clocks,
            identity=Identity(seq, token),
            log_id=before.log_id,
            marks=before.marks,
            fingerprint=self.fingerprint.text,
            generation=self.generation,
            base=before.base,
            published=before.published,
            progress=progress or before.progress,
            idle=before.idle,
            trails=before.trails,
        )
        if not _same(loaded, token, before):
            return Processed(None, before)
        held = self._unpack(users, loaded.states)
        if cause == "generation" or sweeping(before.progress):
            await self._recall(partition, held)
        known = history(held.states)["first_ms"] != NO_TIME
        rows = np.flatnonzero(known)
        causes = [Cause(cause, None, None, None, None)] * len(rows)
        writes = self._writes(held, rows, seq, causes, as_of_ms)
        # A user without a single event left was erased, or is of another store: say so again.
        writes += self._wipes(held, np.flatnonzero(~known), keep_state=loaded.states)
        return await self._commit(partition, token, before, watermark, writes, [], cap=False)

    def _fold_settings(self, before: Watermark | None, base: str | None) -> FoldSettings:
        """Settings of one fold; what the store's base has counted is cut from the log."""
        cut_ms = Base.parse(before.base).cut_ms if before and before.base and base is None else None
        if cut_ms is None:
            return self._fold
        if cut_ms not in self._cut_folds:
            self._cut_folds[cut_ms] = FoldSettings.of(
                self.settings.features, self.settings.kafka.sources, cut_ms=cut_ms
            )
        return self._cut_folds[cut_ms]

    def _unpack(self, users: Sequence[str], rows: Sequence[bytes | None]) -> _Users:
        pairs = [(None, None) if row is None else split(row) for row in rows]
        states = States.decode(list(users), [state for state, _ in pairs])
        settled, head, last = self.scorer.unpack([score for _, score in pairs])
        return _Users(states, settled, head, last)

    async def _recall(self, partition: int, users: _Users) -> None:
        """Take what was said last from the documents themselves.

        While a sweep is pending the states know nothing of it, or only of what they said before
        another store served: `previous` then says what the swap did, and as_of goes on from there.
        """
        if not self.publishes:
            return
        days, names = list(self.settings.model.silence_days), self.documents.horizons
        users.last = self.scorer.no_last(len(users.last))
        found = await self.store.documents(partition, users.states.users)
        for row, raw in enumerate(found):
            if not raw:
                continue
            said = json.loads(raw)
            users.last["as_of_ms"][row] = times.parse(said["as_of"])
            curves = said["silence"]["expected"]
            if said["silence"]["days"] == days and list(curves) == list(names):
                users.last["revision"][row] = said["revision"]
                users.last["expected"][row] = np.transpose([curves[name] for name in names])

    def _writes(
        self,
        users: _Users,
        rows: npt.NDArray[np.intp],
        seq: int,
        causes: Sequence[Cause],
        as_of_ms: int | None,
    ) -> list[Write]:
        """Rescore `rows` and put together what the store shall hold of them."""
        if not len(rows):
            return []
        states = users.states.select(rows)
        head, last = users.head[rows], users.last[rows]
        past = history(states)
        # as_of never goes back: late money may arrive behind a silence update.
        as_of = np.maximum(past["last_ms"], last["as_of_ms"])
        if as_of_ms is not None:
            as_of = np.maximum(as_of, as_of_ms)
        prediction = self.scorer.rescore(states, head, as_of)
        previous = self.scorer.previous_at(last, as_of)
        documents: list[bytes | None] = [None] * len(rows)
        if self.publishes:
            documents = list(
                self.documents.build(
                    states.users, seq, as_of, prediction, past, last["revision"], previous, causes
                )
            )
        # What is built aside says nothing to anybody: its users have no last document yet.
        latest = self.scorer.no_last(len(rows))
        if self.publishes:
            latest = self.scorer.last(seq, as_of, prediction)
        scores = self.scorer.pack(users.settled[rows], head, latest, states.has_tail())
        headline = self.documents.headline
        ranks = prediction.expected[:, 0, headline]
        due = self.scorer.due_ms(prediction, as_of, headline)
        return [
            Write(
                user,
                join(state, score),
                document,
                float(rank),
                None if when == NO_TIME else int(when),
            )
            for user, state, score, document, rank, when in zip(
                states.users, states.encode(), scores, documents, ranks, due, strict=True
            )
        ]

    def _wipes(
        self,
        users: _Users,
        rows: npt.NDArray[np.intp],
        keep_state: Sequence[bytes | None] | None = None,
    ) -> list[Write]:
        """Writes of erased users: the marker stays, where there is one; the document goes."""
        if not len(rows):
            return []
        if keep_state is not None:
            return [Write(users.states.users[r], keep_state[r] or b"", b"") for r in rows]
        states = users.states.select(rows)
        empty = self.scorer.start(len(rows))
        scores = self.scorer.pack(empty, empty, self.scorer.no_last(len(rows)), states.has_tail())
        return [
            Write(user, join(state, score), b"" if self.publishes else None)
            for user, state, score in zip(states.users, states.encode(), scores, strict=True)
        ]

    async def _commit(
        self,
        partition: int,
        token: str,
        before: Watermark | None,
        watermark: Watermark,
        writes: list[Write],
        letters: list[Letter],
        *,
        cap: bool = True,
    ) -> Processed:
        size = sum(len(w.state) + len(w.document or b"") for w in writes)
        if cap and size > self._max_bytes:
            return Processed(None, watermark, split=True, counts=Counter(bytes=size))
        crashpoints.passing("before_commit")
        started = time.perf_counter()
        outcome = await self.store.commit(
            partition,
            Commit(token, before, watermark, writes, letters, self.publishes),
        )
        crashpoints.passing("after_commit")
        counts: Counter[str] = Counter(users=len(writes), bytes=size)
        counts["commit_us"] = int((time.perf_counter() - started) * 1e6)
        updates = {w.user: w.document for w in writes if w.document is not None}
        return Processed(outcome, watermark, updates, letters, counts=counts)

    def _causes(
        self,
        partition: int,
        batch: EventBatch,
        folded: Folded,
        rows: npt.NDArray[np.intp],
    ) -> list[Cause]:
        """The last event of each user that was folded, as its document names it."""
        sources = self.settings.kafka.sources
        # An erase can leave events that were folded in an earlier batch: no event here.
        erase = Cause("erase", None, None, None, None)
        if not batch.size:
            return [erase] * len(rows)
        at = folded.cause[rows]
        kinds = batch.events["kind"][at]
        topics = batch.events["source"][at]
        offsets = batch.offset[at]
        return [
            Cause(_TYPES[kind], batch.event_id[i], sources[source], partition, offset)
            if i >= 0
            else erase
            for i, kind, source, offset in zip(
                at.tolist(), kinds.tolist(), topics.tolist(), offsets.tolist(), strict=True
            )
        ]


_TYPES = {kind.value: kind.name.lower() for kind in Kind}


def _same(loaded: Loaded, token: str, before: Watermark | None) -> bool:
    """Whether the store still stands where the writer believes it does."""
    if loaded.token != token:
        return False
    if loaded.watermark is None or before is None:
        return loaded.watermark is before
    return (loaded.watermark.positions, loaded.watermark.identity) == (
        before.positions,
        before.identity,
    )


def _clocks(before: Watermark | None, after: Positions, sources: int) -> Clocks:
    times = before.clocks if before else (NO_TIME,) * sources
    return Clocks(np.array(times, np.int64), np.array(after.idle, bool))


def _or_empty(before: Watermark | None, after: Positions, pipeline: Pipeline) -> Watermark:
    if before is not None:
        return before
    sources = len(after.positions)
    return Watermark(
        positions=(0,) * sources,
        clocks=(NO_TIME,) * sources,
        identity=Identity(0, ""),
        log_id=after.log_id,
        marks=("",) * sources,
        fingerprint=pipeline.fingerprint.text,
        generation=pipeline.generation,
    )


def _letters(batch: EventBatch, folded: Folded, rejected: Sequence[Rejected]) -> list[Letter]:
    """Dead letters of a step, in the order of their source and offset."""
    letters = [Letter(r.source, r.offset, str(r.reason)) for r in rejected]
    for outcome, reason in _PARKED.items():
        for i in np.flatnonzero(folded.outcome == outcome):
            source = int(batch.events["source"][i])
            letters.append(Letter(source, int(batch.offset[i]), str(reason)))
    return sorted(letters, key=lambda letter: (letter.source, letter.offset))


def _counts(batch: EventBatch, folded: Folded, rejected: Sequence[Rejected]) -> Counter[str]:
    """Facts of a step, by outcome and by reason of rejection."""
    numbers = np.bincount(folded.outcome, minlength=len(Outcome))
    counts = Counter(
        {outcome.name.lower(): int(numbers[outcome]) for outcome in Outcome if numbers[outcome]}
    )
    counts.update(f"rejected_{r.reason}" for r in rejected)
    unnamed = (batch.events["flags"] & NO_ID) != 0
    counts["without_id"] = int((unnamed & (folded.outcome <= Outcome.APPLIED_LATE)).sum())
    counts["touched"] = int(folded.touched.sum())
    counts["erased_amid_settled"] = folded.split
    return counts
