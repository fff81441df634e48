"""The owner of one partition: claim, process, publish, and one way back from everything.

Claim (in this order): write a new token, start the transactional producer, read the last
published record, check that log and store are the ones we know, then read from the watermark to
each source's last stable offset, whether or not anything is delivered. Process: one batch, one
atomic commit, compared against the expected positions and seq. Publish: streams/publish.py.

One way back from every irregularity (fenced though still ours, stale, an unknown outcome, a
failed transaction, a watermark that is not what we expect when we look every few seconds):
forget memory, back off, claim again. Nothing is ever raised to whoever delivers.

Redis was rolled back if the published identity is not in the outbox that the claim returned.
Then nothing is published, and processing does not wait for the outbox, until the watermark has
reached the published positions in every source; each user touched since is published once
under seq = max(both) + 1, and only dead letters at or beyond the published positions.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from featurestore.columns import NO_TIME
from featurestore.errors import (
    FeatureStoreError,
    StateFormatError,
    StoreError,
    StoreFull,
    StoreMismatch,
)
from featurestore.store import Claim, CommitOutcome, Watermark
from streams import sweep
from streams.codec import Codec
from streams.delivery import Segment
from streams.emit import Parked, Published
from streams.errors import Fenced, LogError, Misrouted, PublishError, Stale, StreamsError
from streams.gap import Bounds, LogReader
from streams.intake import Hole, Intake, Taken
from streams.logid import check_log, check_store
from streams.metrics import Metrics
from streams.pipeline import Pipeline, Positions, Processed
from streams.publish import Breath, Pacer, Publisher, Waiting
from streams.settings import Settings
from streams.succession import Flipped, Succession

log = logging.getLogger(__name__)

_WATCH_S = 3.0  # an idle partition would not notice a roll-back by itself
_QUIET_S = 1.0  # a source with unread records that delivers nothing is read directly
_SILENCE_S = 1.0
_SUCCESSION_S = 1.0
_SMALL = 256  # records: a smaller step leaves the loop time to publish
_MARKERS_S = 0.5  # positions that moved over markers alone are committed this seldom
_REFRESH_USERS = 400  # a commit
_CLOSE_S = 20.0  # to finish the batch at hand and publish
_MISROUTED_OF = 1000  # records looked at before most of them being misrouted is believed
_PUBLISHED_PATIENCE_S = 60.0  # a published record that should be there is read again this long
_BACK_OFF_S = (0.05, 5.0)
_HALT = (StoreError, LogError, StateFormatError)


@dataclass(slots=True)
class Rollback:
    """A Redis that was rolled back behind what is published."""

    published: Published
    users: set[str]  # touched since: each is published once
    parked: list[Parked]  # dead letters at or beyond the published positions


@dataclass(slots=True)
class Surroundings:
    """What the owners of one worker share."""

    settings: Settings
    codec: Codec
    metrics: Metrics
    pacer: Pacer
    breath: Breath
    pipeline_for: Callable[[int], Awaitable[Pipeline]]  # into the partition's active store
    log_id: Callable[[], Awaitable[str]]  # topic UUIDs, as the broker says now
    now_ms: Callable[[], int]
    succession_for: Callable[[int], Succession] | None = None  # takes announced stores over
    pause: Callable[[int, int], None] = lambda partition, source: None
    resume: Callable[[int, int], None] = lambda partition, source: None


class Owner:
    """Owns one partition from its assignment to its revocation."""

    def __init__(self, partition: int, around: Surroundings) -> None:
        self.partition = partition
        self.halted: str = ""
        self.watermark: Watermark | None = None
        self.ready = False  # claimed, and caught up with what was in the log at the claim
        self.moved_s = time.monotonic()  # when the watermark last moved, or had nothing to do
        self._around = around
        self._settings = around.settings
        self._metrics = around.metrics
        self._intake = Intake(around.codec, partition, around.settings)
        self._reader = LogReader(around.settings.kafka)
        self._tps = [TopicPartition(t, partition) for t in around.settings.kafka.sources]
        self._pipeline: Pipeline | None = None
        self._publisher: Publisher | None = None
        self._token = self._generation = ""
        self._log_id = ""
        self._seq_at_least = 0
        self._rollback: Rollback | None = None
        self._wake = asyncio.Event()
        self._closing = False
        self._drain = False
        self._back_off_s = _BACK_OFF_S[0]
        self._watched_s = self._silence_s = self._committed_s = self._claimed_s = 0.0
        self._succeeded_s = 0.0
        self._missing_since: float | None = None
        self._delivered_s = [0.0] * len(self._tps)
        self._at_end_since = [time.monotonic()] * len(self._tps)
        self._idle = [False] * len(self._tps)
        self._paused: set[int] = set()
        self._bytes_each = 0.0  # of a commit, for each record of the last one
        self._task: asyncio.Task[None] | None = None
        succession = around.succession_for
        self._succession = succession(partition) if succession is not None else None

    # -------------------------------------------------------------- from outside

    def start(self, after: Owner | None = None) -> None:
        """Begin to own; `after` is the owner of the same partition before a rebalance."""
        self._task = asyncio.create_task(self._run(after), name=f"owner-{self.partition}")

    def deliver(self, source: int, segment: Segment) -> None:
        """Hand over one delivery of a source. Never raises, never waits."""
        if self.halted or self._closing:
            # Nobody will commit it; what is not fetched is not kept in memory either.
            segment.records = ()
            self._around.pause(self.partition, source)
            return
        self._intake.deliver(source, segment)
        self._delivered_s[source] = time.monotonic()
        if source not in self._paused and self._full(source):
            self._paused.add(source)
            self._around.pause(self.partition, source)
        self._wake.set()

    def stop_soon(self, *, drain: bool = False) -> None:
        """Stop after the batch at hand; with `drain`, publish first what was committed."""
        self._closing, self._drain = True, drain
        self._wake.set()

    async def close(self, *, drain: bool) -> None:
        """Stop as `stop_soon` does, and wait until stopped."""
        self.stop_soon(drain=drain)
        if self._task is not None:
            # A claim may be waiting for a broker that is down.
            done, _ = await asyncio.wait([self._task], timeout=_CLOSE_S)
            if not done:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
                if self._publisher is not None:
                    await self._publisher.stop()

    def saw_end(self, ends: Sequence[int]) -> None:
        """Take in the last stable offsets as somebody else has read them."""
        for source, end in zip(self._intake.sources, ends, strict=True):
            if end > source.end:
                source.end = end
                self._wake.set()

    @property
    def stopped(self) -> bool:
        """Whether nothing of this owner runs any more."""
        return self._task is None or self._task.done()

    @property
    def lag(self) -> int:
        """Positions between the watermark and the last stable offsets known."""
        return sum(max(0, s.end - s.position) for s in self._intake.sources)

    @property
    def outbox_users(self) -> int:
        """Documents waiting to be published."""
        return self._publisher.users if self._publisher else 0

    @property
    def idle(self) -> bool:
        """Whether everything that was committed is published."""
        return self._publisher is not None and self._publisher.idle

    @property
    def rolling(self) -> bool:
        """Whether a roll-back is being made good."""
        return self._rollback is not None

    # -------------------------------------------------------------- the one way

    async def _run(self, after: Owner | None) -> None:
        if after is not None:
            await after.close(drain=False)
        while not self._closing:
            try:
                await self._claim()
                await self._work()
            except Flipped:
                await self._let_go()
            except _HALT as error:
                if isinstance(error, StoreFull):
                    await self._forget(error)
                else:
                    self._halt(error)
                    break
            except (StreamsError, FeatureStoreError, KafkaError, OSError, TimeoutError) as error:
                await self._forget(error)
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                await self._forget(PublishError(f"a driver was cancelled by itself: {error!r}"))
            except Exception as error:  # the same way back; the watchdog ends it
                log.exception("partition %s: unexpected", self.partition)
                await self._forget(error)
        await self._let_go()
        if self._succession is not None:
            await self._succession.close()
        await self._reader.close()

    async def _forget(self, error: Exception) -> None:
        """Forget memory and back off, before claiming again."""
        self._metrics.irregular.labels(type(error).__name__).inc()
        log.warning(
            "partition forgotten",
            extra={"partition": self.partition, "why": type(error).__name__, "error": str(error)},
        )
        await self._let_go()
        if self._closing:
            return
        await self._pause(self._back_off_s * random.uniform(0.5, 1.5))
        self._back_off_s = min(self._back_off_s * 2, _BACK_OFF_S[1])

    async def _let_go(self) -> None:
        """Forget what the claim gave; what is committed stands in the outbox."""
        publisher, self._publisher = self._publisher, None
        self._token, self.watermark, self.ready, self._rollback = "", None, False, None
        if publisher is not None:
            await publisher.stop()

    def _halt(self, error: Exception) -> None:
        self.halted = str(error)
        self._metrics.halted.labels(str(self.partition)).set(1)
        for source in range(len(self._tps)):
            self._around.pause(self.partition, source)
        log.error(
            "partition halted",
            extra={
                "partition": self.partition,
                "why": type(error).__name__,
                "error": str(error),
            },
        )

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not past the wish to close."""
        until = time.monotonic() + seconds
        while not self._closing and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.2))

    # -------------------------------------------------------------- claim

    async def _claim(self) -> None:
        """Steps 1, 5 and 6 of the protocol; every await may find that we are to close."""
        around, p = self._around, self.partition
        self._pipeline = pipeline = await around.pipeline_for(p)
        claim = await pipeline.store.claim(p)
        self._token = claim.token
        self._still_ours()
        self._metrics.claims.inc()
        self._say_generation(pipeline.generation)
        if claim.watermark is not None and claim.watermark.fingerprint != pipeline.fingerprint:
            raise StoreMismatch(
                f"store {pipeline.store.name!r} was folded with other settings than these: "
                "`livevalue doctor` names the key; to change the past, build a store aside"
            )
        self._log_id = await around.log_id()
        publisher = Publisher(
            p,
            self._settings,
            pipeline.store,
            claim.token,
            self._log_id,
            self._reader,
            around.pacer,
            self._metrics,
            self._wake.set,
        )
        await publisher.start()
        self._publisher = publisher
        self._still_ours()
        published = await publisher.last_published()
        scores = TopicPartition(self._settings.kafka.scores, p)
        found = await self._reader.bounds([*self._tps, scores])
        bounds = [found[tp] for tp in self._tps]
        check_store(p, claim.watermark, published, bounds, found[scores])
        await check_log(self._reader, self._tps, claim.watermark, published, self._log_id, bounds)
        self._still_ours()
        self._adopt(claim, bounds)
        await self._reconcile(claim, published)
        publisher.begin()
        log.info(
            "partition claimed",
            extra={
                "partition": p,
                "positions": [s.position for s in self._intake.sources],
                "ends": [s.end for s in self._intake.sources],
                "seq": claim.watermark.identity.seq if claim.watermark else 0,
                "outbox": len(claim.outbox),
                "published_seq": published.identity.seq if published else None,
                "rolled_back": self._rollback is not None,
            },
        )

    def _say_generation(self, generation: str) -> None:
        gauge, p = self._metrics.generation, str(self.partition)
        if self._generation and self._generation != generation:
            gauge.remove(p, self._generation)
        self._generation = generation
        gauge.labels(p, generation).set(1)

    def _still_ours(self) -> None:
        if self._closing:
            raise Fenced(f"partition {self.partition} was revoked during its claim")

    def _adopt(self, claim: Claim, bounds: Sequence[Bounds]) -> None:
        """Take over where the store stands; behind a base of files, where the log begins."""
        mark, count = claim.watermark, len(self._tps)
        self.watermark = mark
        now = time.monotonic()
        self._watched_s = self._claimed_s = now
        self._at_end_since = [now] * count
        self._idle = list(mark.idle) if mark and mark.idle else [False] * count
        positions = mark.positions if mark else (0,) * count
        if mark is not None and mark.base:
            positions = tuple(p or b.start for p, b in zip(positions, bounds, strict=True))
        self._intake.reset(
            positions,
            mark.clocks if mark else (NO_TIME,) * count,
            mark.marks if mark and mark.marks else ("",) * count,
        )
        for source, held in zip(self._intake.sources, bounds, strict=True):
            source.end = held.end

    async def _reconcile(self, claim: Claim, published: Published | None) -> None:
        """What the outbox still has to say, by the identity of what was published last."""
        assert self._publisher is not None
        self._rollback, self._seq_at_least = None, 0
        mark = claim.watermark
        known = mark.published if mark else None
        swept: Waiting | None = None
        if known is not None and (published is None or published.identity.seq < known.seq):
            swept = await self._doubt(known.seq, published)
            published = None
        self._missing_since = None
        new = list(claim.outbox)
        if published is not None:
            at = [i for i, e in enumerate(claim.outbox) if e.identity == published.identity]
            if not at:
                self._roll_back(claim, published)
                return
            new = list(claim.outbox[at[-1] + 1 :])
        if new and mark is not None:
            users = dict.fromkeys(u for e in new for u in e.users)
            documents = {u: claim.documents.get(u) or b"" for u in users}
            parked = [Parked(letter) for e in new for letter in e.letters]
            self._publisher.put(Waiting(mark.identity, mark.positions, documents, parked))
        if swept is not None:
            self._publisher.put(swept)

    async def _doubt(self, known_seq: int, published: Published | None) -> Waiting:
        """A published record is missing or lower than Redis knows: read again, then sweep."""
        now = time.monotonic()
        self._missing_since = self._missing_since or now
        if now - self._missing_since < _PUBLISHED_PATIENCE_S:
            raise PublishError(
                f"the last published record of partition {self.partition} is "
                f"{published.identity.seq if published else 'missing'}, yet the store knows of "
                f"{known_seq}: reading it again"
            )
        log.error(
            "published record lost, publishing every user again",
            extra={"partition": self.partition, "known_seq": known_seq},
        )
        assert self._pipeline is not None and self.watermark is not None
        self._seq_at_least = known_seq
        done = await self._pipeline.refresh(
            self.partition,
            self._token,
            self.watermark,
            [],
            None,
            "recover",
            progress=sweep.PENDING,
        )
        self._demand(done)
        self.watermark = mark = done.watermark
        return Waiting(mark.identity, mark.positions, done.updates)

    def _roll_back(self, claim: Claim, published: Published) -> None:
        self._metrics.rolled_back.inc()
        users = {u for e in claim.outbox for u in e.users}
        parked = [
            Parked(letter)
            for e in claim.outbox
            for letter in e.letters
            if letter.offset >= published.positions[letter.source]
        ]
        self._rollback = Rollback(published, users, parked)
        self._seq_at_least = published.identity.seq
        log.warning(
            "redis was rolled back",
            extra={
                "partition": self.partition,
                "store_seq": claim.watermark.identity.seq if claim.watermark else 0,
                "store_positions": claim.watermark.positions if claim.watermark else None,
                "published_seq": published.identity.seq,
                "published_positions": published.positions,
                "users": len(users),
            },
        )

    # -------------------------------------------------------------- work

    async def _work(self) -> None:
        """Process, publish and look around until told to close; raises what is irregular."""
        assert self._publisher is not None
        publisher = self._publisher
        while True:
            self._wake.clear()
            if publisher.error is not None:
                raise publisher.error
            if self._closing:
                if self._drain and not self.rolling:
                    await self._drained(publisher)
                return
            if self._rollback is not None and self._recovered(self._rollback):
                await self._finish_rollback(self._rollback)
                continue
            if await self._step():
                await self._look_for_successor()
                continue
            await self._look_around()
            await self._look_for_successor()
            if self._wake.is_set():
                continue
            try:
                await asyncio.wait_for(self._wake.wait(), 0.25)
            except TimeoutError:
                pass

    async def _drained(self, publisher: Publisher) -> None:
        until = time.monotonic() + 15.0
        while not publisher.idle and publisher.error is None and time.monotonic() < until:
            await asyncio.sleep(0.01)

    async def _step(self) -> bool:
        """One batch; False where there is nothing to do or the outbox is too full."""
        publisher = self._publisher
        assert publisher is not None
        if publisher.users > self._settings.worker.outbox_users and not self.rolling:
            return False
        small = self._intake.buffered < _SMALL
        if small:
            if not self._intake.pending:
                return False
            await self._around.breath.turn()
        began, cpu_s = time.monotonic(), time.thread_time()
        try:
            return await self._take_step(began)
        finally:
            if small:
                self._around.breath.took(time.thread_time() - cpu_s)

    async def _take_step(self, began: float) -> bool:
        for hole in self._intake.fill():
            await self._mend(hole)
        if self._intake.decoded >= _MISROUTED_OF and self.watermark is None:
            self._check_routing()
        most = self._fitting()
        while True:
            taken = self._intake.take(most)
            if taken is None:
                self._resume()
                return False
            if not taken.records and began - self._committed_s < _MARKERS_S:
                return False
            done = await self._process(taken)
            if taken.records:
                self._bytes_each = done.counts["bytes"] / taken.records
            if not done.split:
                break
            most = max(1, min(self._fitting(), taken.records - taken.records // 8))
        self._demand(done)
        await self._committed(taken, done, began)
        return True

    def _fitting(self) -> int:
        """Events of the next batch: what a commit holds, since one that is cut is folded twice."""
        room = 0.9 * self._settings.store.max_commit_mib * (1 << 20)
        return max(1, min(self._settings.worker.batch, int(room / max(1.0, self._bytes_each))))

    def _check_routing(self) -> None:
        if self._intake.misrouted * 2 > self._intake.decoded:
            kafka = self._settings.kafka
            raise Misrouted(
                f"{self._intake.misrouted} of the first {self._intake.decoded} records of "
                f"partition {self.partition} belong to another one by {kafka.partitioner}: set "
                "LIVEVALUE_KAFKA__PARTITIONER to what the producers use "
                "(crc32: librdkafka's default; fnv1a: Go clients)"
            )

    async def _process(self, taken: Taken) -> Processed:
        assert self._pipeline is not None
        return await self._pipeline.process(
            self.partition,
            self._token,
            self.watermark,
            Positions(taken.positions, taken.marks, self._log_id, self._idle_after(taken)),
            taken.batch,
            taken.rejected,
            self._around.now_ms(),
            seq_at_least=self._seq_at_least,
        )

    def _demand(self, done: Processed) -> None:
        """Only OK is progress; everything else is the one way back."""
        outcome = "MOVED" if done.outcome is None else str(done.outcome)
        self._metrics.commits.labels(outcome).inc()
        if done.outcome is CommitOutcome.OK:
            return
        if done.outcome is CommitOutcome.FENCED:
            raise Fenced(f"another worker claimed partition {self.partition}")
        raise Stale(f"partition {self.partition}: {outcome}, the store is not where we thought")

    async def _committed(self, taken: Taken, done: Processed, began: float) -> None:
        self._intake.commit(taken, done.watermark.clocks)
        self._arrived(taken)
        self._advance(done, self._parked(taken, done))
        self._resume()
        self._back_off_s, self._committed_s = _BACK_OFF_S[0], time.monotonic()
        self._report(taken, done, time.monotonic() - began)

    def _advance(self, done: Processed, parked: list[Parked]) -> None:
        """The commit stands: pass on what it has to say."""
        assert self._publisher is not None
        self.watermark = done.watermark
        self.moved_s = time.monotonic()
        roll = self._rollback
        if roll is not None:
            roll.users.update(done.updates)
            ends = roll.published.positions
            roll.parked += [x for x in parked if x.letter.offset >= ends[x.letter.source]]
            return
        mark = done.watermark
        self._publisher.put(Waiting(mark.identity, mark.positions, done.updates, parked))

    def _parked(self, taken: Taken, done: Processed) -> list[Parked]:
        if not done.letters:
            return []
        raw = {(s, r.offset): r for s, records in taken.raw.items() for r in records}
        said = {(r.source, r.offset): r.detail for r in taken.rejected}
        return [
            Parked(x, said.get((x.source, x.offset), ""), raw.get((x.source, x.offset)))
            for x in done.letters
        ]

    # -------------------------------------------------------------- holes and idle sources

    async def _mend(self, hole: Hole) -> None:
        """Read a hole straight from the log, in batches, into the intake."""
        tp = self._tps[hole.source]
        records, reached = await self._reader.read(
            tp, hole.low, hole.high, self._settings.worker.batch
        )
        self._metrics.gap_records.inc(len(records))
        log.info(
            "read again from the log",
            extra={
                "partition": self.partition,
                "topic": tp.topic,
                "from": hole.low,
                "to": reached,
                "records": len(records),
            },
        )
        if reached > self._intake.sources[hole.source].cursor:
            self._intake.insert(hole.source, records, reached)
        if reached < hole.high:
            self._wake.set()

    def _idle_after(self, taken: Taken) -> tuple[bool, ...]:
        """Which sources are left out of the frontier once `taken` is committed."""
        worker, now = self._settings.worker, time.monotonic()
        behind_ms = int(worker.idle_behind.total_seconds() * 1000)
        clocks = [s.clock for s in self._intake.sources]
        largest = max(clocks)
        for s, source in enumerate(self._intake.sources):
            if taken.counts[s]:
                self._idle[s] = False
            elif source.end <= source.position:
                rested = now - self._at_end_since[s] >= worker.idle_after_s
                far = clocks[s] == NO_TIME or clocks[s] < largest - behind_ms
                self._idle[s] = self._idle[s] or (rested and far)
        return tuple(self._idle)

    def _arrived(self, taken: Taken) -> None:
        now = time.monotonic()
        for s, source in enumerate(self._intake.sources):
            if taken.counts[s] or source.end > source.position:
                self._at_end_since[s] = now

    def _full(self, source: int) -> bool:
        return self._intake.sources[source].buffered > 2 * self._settings.worker.batch

    def _resume(self) -> None:
        for source in list(self._paused):
            if self._intake.sources[source].buffered < self._settings.worker.batch:
                self._paused.discard(source)
                self._around.resume(self.partition, source)

    # -------------------------------------------------------------- when there is time

    async def _look_around(self) -> None:
        """Nothing to process: read what nobody delivers, watch, and speak for the silent."""
        now = time.monotonic()
        if self.lag == 0:
            self.ready, self.moved_s = True, now
        for hole in self._intake.waiting_for():
            if now - max(self._delivered_s[hole.source], self._claimed_s) > _QUIET_S:
                await self._mend(hole)
                self._wake.set()
                return
        if now - self._watched_s > _WATCH_S:
            await self._watch()
            self._watched_s = time.monotonic()
        if self.rolling or self.watermark is None:
            return
        assert self._publisher is not None
        if self._publisher.users > self._settings.worker.outbox_users:
            return
        if sweep.pending(self.watermark):
            await self._sweep()
        elif now - self._silence_s > _SILENCE_S:
            await self._speak_for_silent()
            self._silence_s = time.monotonic()

    async def _look_for_successor(self) -> None:
        """Every few seconds, busy or not: is another store announced, and how far is it?"""
        now = time.monotonic()
        if self._succession is None or now - self._succeeded_s < _SUCCESSION_S or self.rolling:
            return
        self._succeeded_s = now
        assert self._pipeline is not None
        if self.watermark is None:
            # A flip needs equal positions: say that we stand at the log's beginning.
            if await self._pipeline.store.next(self.partition) is None:
                return
            done = await self._process(self._intake.nothing())
            self._demand(done)
            self._advance(done, [])
        assert self.watermark is not None
        await self._succession.look(self._pipeline.store, self._token, self.watermark)

    async def _watch(self) -> None:
        """A roll-back, or another writer, shows in the watermark."""
        assert self._pipeline is not None
        loaded = await self._pipeline.store.load(self.partition, [])
        if loaded.token != self._token:
            raise Fenced(f"the token of partition {self.partition} is no longer ours")
        there, here = loaded.watermark, self.watermark
        if (there is None) != (here is None) or (
            there is not None
            and here is not None
            and (there.positions, there.identity) != (here.positions, here.identity)
        ):
            raise Stale(f"the watermark of partition {self.partition} is not what we wrote")

    async def _speak_for_silent(self) -> None:
        """Publish users whose value has moved by silence alone."""
        assert self._pipeline is not None and self.watermark is not None
        now_ms = self._now_ms(self.watermark)
        if now_ms == NO_TIME:
            return
        users = await self._pipeline.store.due(self.partition, now_ms, _REFRESH_USERS)
        if not users:
            return
        done = await self._pipeline.refresh(
            self.partition,
            self._token,
            self.watermark,
            users,
            now_ms,
            "silence",
            seq_at_least=self._seq_at_least,
        )
        self._demand(done)
        self._advance(done, [])

    def _now_ms(self, mark: Watermark) -> int:
        """Now as the deployment counts it."""
        return self._around.now_ms() if self._settings.worker.clock == "wall" else max(mark.clocks)

    async def _sweep(self) -> None:
        """The next page of a pending sweep: every user once, under this generation."""
        assert self._pipeline is not None and self.watermark is not None
        done = await sweep.sweep_page(
            self._pipeline,
            self._pipeline.store,
            self.partition,
            self._token,
            self.watermark,
            # Not behind what the store that served before has said of silent users.
            self._now_ms(self.watermark),
        )
        self._demand(done)
        self._advance(done, [])
        self._wake.set()

    # -------------------------------------------------------------- after a roll-back

    def _recovered(self, roll: Rollback) -> bool:
        mark = self.watermark
        if mark is None:
            return False
        pairs = zip(mark.positions, roll.published.positions, strict=True)
        return all(have >= need for have, need in pairs)

    async def _finish_rollback(self, roll: Rollback) -> None:
        """Publish once each user touched since, under a seq beyond both, in one transaction.

        All pages are committed before any is published: a crash in between finds the published
        identity still missing from the outbox and does all of it again.
        """
        assert self._pipeline is not None and self._publisher is not None
        users = sorted(roll.users)
        waiting = []
        for low in range(0, max(1, len(users)), _REFRESH_USERS):
            assert self.watermark is not None
            done = await self._pipeline.refresh(
                self.partition,
                self._token,
                self.watermark,
                users[low : low + _REFRESH_USERS],
                None,
                "recover",
                seq_at_least=self._seq_at_least,
            )
            self._demand(done)
            self.watermark = done.watermark
            mark = done.watermark
            waiting.append(Waiting(mark.identity, mark.positions, done.updates))
        waiting[-1].parked += roll.parked
        self._rollback = None
        for commit in waiting:
            self._publisher.put(commit)
        log.warning(
            "roll-back made good",
            extra={
                "partition": self.partition,
                "users": len(users),
                "seq": self.watermark.identity.seq if self.watermark else 0,
            },
        )

    # -------------------------------------------------------------- facts

    def _report(self, taken: Taken, done: Processed, took_s: float) -> None:
        """The canonical line of a batch, and its metrics."""
        metrics, p = self._metrics, str(self.partition)
        metrics.count(done.counts)
        metrics.batch_s.observe(took_s)
        metrics.commit_s.observe(done.counts.get("commit_us", 0) / 1e6)
        metrics.seq.labels(p).set(done.watermark.identity.seq)
        metrics.lag.labels(p).set(self.lag)
        metrics.outbox.labels(p).set(self.outbox_users)
        for topic, clock in zip(self._settings.kafka.sources, done.watermark.clocks, strict=True):
            if clock != NO_TIME:
                metrics.clock.labels(p, topic).set(clock / 1000)
        if taken.batch.size:
            ages = self._around.now_ms() - taken.batch.events["time_ms"]
            metrics.freshness.observe(ages.clip(0) / 1000.0)
        if log.isEnabledFor(logging.INFO):
            log.info(
                "batch",
                extra={
                    "partition": self.partition,
                    "records": taken.records,
                    "seq": done.watermark.identity.seq,
                    "positions": done.watermark.positions,
                    "lag": self.lag,
                    "outbox_users": self.outbox_users,
                    "ms": round(took_s * 1000, 2),
                    **done.counts,
                },
            )
