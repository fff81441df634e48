"""The owner of one partition: claim, process, publish, and one way back from everything.

Claim: streams/claim.py; then read from the watermark to each source's last stable offset, whether
or not anything is delivered. Process: one batch, one atomic commit, compared against the expected
positions and seq (streams/held.py). Publish: streams/publish.py. What is done when there is time:
streams/upkeep.py.

One way back from every irregularity (fenced though still ours, stale, an unknown outcome, a
failed transaction, a watermark that is not what we expect when we look every few seconds):
forget memory, back off, claim again. Nothing is ever raised to whoever delivers.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence

from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from featurestore.columns import NO_TIME
from featurestore.errors import (
    FeatureStoreError,
    StateFormatError,
    StoreError,
    StoreUnavailable,
)
from featurestore.store import Watermark
from scoring.errors import RegistryUnavailable, ScoringError
from streams import crashpoints, ending
from streams.claim import Claims
from streams.delivery import Segment
from streams.emit import Parked
from streams.errors import LogError, Misrouted, PublishError, Stale, StreamsError, TopicError
from streams.gap import LogReader
from streams.held import Held
from streams.intake import Intake, Taken
from streams.pipeline import Processed
from streams.publish import Publisher
from streams.succession import Flipped
from streams.surroundings import Surroundings
from streams.upkeep import Upkeep

log = logging.getLogger(__name__)

_SMALL = 256  # records: a smaller step leaves the loop time to publish
_MARKERS_S = 0.5  # positions that moved over markers alone are committed this seldom
_CLOSE_S = 20.0  # to finish the batch at hand and publish
_MISROUTED_OF = 1000  # records looked at before most of them being misrouted is believed
_BACK_OFF_S = (0.05, 5.0)
_STORE_BACK_OFF_S = 1.0  # at most, while the store is away: a claim that fails costs it nothing
_HALT = (StoreError, LogError, StateFormatError, ScoringError)
# May pass, as a broker's absence may: one that has just begun does not know of every topic. Of one
# that stays away the watchdog makes sure.
_PASSES = (RegistryUnavailable, TopicError)


class Owner:
    """Owns one partition from its assignment to its revocation."""

    def __init__(self, partition: int, around: Surroundings) -> None:
        self.partition = partition
        self.halted: str = ""
        self.ready = False  # claimed, and caught up with what was in the log at the claim
        self.moved_s = time.monotonic()  # when the watermark last moved, or had nothing to do
        self._around = around
        self._settings = around.settings
        self._metrics = around.metrics
        self._intake = Intake(around.codec, partition, around.settings)
        self._reader = LogReader(around.settings.kafka)
        self._wake = asyncio.Event()
        self._closing = False
        self._doubted = ""  # why somebody doubts that the log is the one that we claimed on
        self._drain = False
        self._claims = Claims(
            partition, around, self._reader, self._intake, lambda: self._closing, self._wake.set
        )
        self._upkeep = Upkeep(partition, around, self._reader, self._intake, self._wake.set)
        self._held: Held | None = None
        self._back_off_s = _BACK_OFF_S[0]
        self._committed_s = 0.0
        self._paused: set[int] = set()
        self._bytes_each = 0.0  # of a commit, for each record of the last one
        self._task: asyncio.Task[None] | None = None

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
        self._upkeep.delivered(source)
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
                await ending.end(self._task)
                if self._held is not None:
                    await self._held.publisher.stop()

    def saw_end(self, ends: Sequence[int]) -> None:
        """Take in the last stable offsets as somebody else has read them."""
        for source, end in zip(self._intake.sources, ends, strict=True):
            if end > source.end:
                source.end = end
                self._wake.set()

    def doubt(self, why: str) -> None:
        """Somebody has seen that the log is not what it was: claim again, which says what it is."""
        self._doubted = why
        self._wake.set()

    def led(self, epochs: Sequence[int], asked_s: float) -> None:
        """Take in the epoch of each source's leader, as the broker said when asked at `asked_s`.

        Behind another leader the log may have been cut, and written on.
        """
        if self._held is None:
            return  # the claim asks for itself
        trails = [source.trail for source in self._intake.sources]
        still = [t.still(epoch, asked_s) for t, epoch in zip(trails, epochs, strict=True)]
        others = [
            topic
            for topic, same in zip(self._settings.kafka.sources, still, strict=True)
            if not same
        ]
        if others:
            self.doubt(f"{', '.join(others)} of partition {self.partition} has another leader")

    @property
    def log_id(self) -> str:
        """Identity of the logs as the claim found it; "" without a claim."""
        return self._held.log_id if self._held else ""

    @property
    def outputs(self) -> tuple[str, str] | None:
        """UUIDs of `scores` and `<scores>.published` as the claim found them; None without one."""
        return self._held.publisher.outputs if self._held else None

    @property
    def scores_end(self) -> int:
        """How far transactions have brought our partition of `scores`; 0 without a claim."""
        return self._held.publisher.scores_end if self._held else 0

    @property
    def in_hand(self) -> list[int]:
        """The position in each source up to which everything was read, committed or not."""
        return [source.in_hand for source in self._intake.sources]

    @property
    def stopped(self) -> bool:
        """Whether nothing of this owner runs any more."""
        return self._task is None or self._task.done()

    @property
    def watermark(self) -> Watermark | None:
        """Where the claimed store stands; None without a claim, or without anything folded."""
        return self._held.watermark if self._held else None

    @property
    def lag(self) -> int:
        """Positions between the watermark and the last stable offsets known."""
        return sum(max(0, s.end - s.position) for s in self._intake.sources)

    @property
    def outbox_users(self) -> int:
        """Documents waiting to be published."""
        return self._held.publisher.users if self._held else 0

    @property
    def got_on_s(self) -> float:
        """When it last got on, amid a roll-back made good, too; by the monotonic clock."""
        return max(self.moved_s, self._held.moved_s if self._held else 0.0)

    @property
    def idle(self) -> bool:
        """Whether everything that was committed is published."""
        return self._held is not None and self._held.publisher.idle

    @property
    def rolling(self) -> bool:
        """Whether a roll-back is being made good."""
        return self._held is not None and self._held.rollback is not None

    # -------------------------------------------------------------- the one way

    async def _run(self, after: Owner | None) -> None:
        if after is not None:
            await after.close(drain=False)
        while not self._closing:
            try:
                self._held = await self._claims.claim()
                self._upkeep.begin(self._held.watermark)
                await self._work(self._held)
            except Flipped:
                await self._let_go()
            except _HALT as error:
                if isinstance(error, _PASSES):
                    await self._forget(error)
                else:
                    self._halt(error)
                    break
            except (StreamsError, FeatureStoreError, KafkaError, OSError, TimeoutError) as error:
                await self._forget(error)
            except asyncio.CancelledError as error:
                if ending.asked_to_end():
                    raise
                await self._forget(PublishError(f"a driver was cancelled by itself: {error!r}"))
            except Exception as error:  # the same way back; the watchdog ends it
                log.exception("partition %s: unexpected", self.partition)
                await self._forget(error)
        await self._let_go()
        await self._upkeep.close()
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
        back_off_s = self._back_off_s
        if isinstance(error, StoreUnavailable):
            # No stall: a worker started anew could only wait as well, and would be back later.
            self.moved_s = time.monotonic()
            back_off_s = min(back_off_s, _STORE_BACK_OFF_S)
        await self._pause(back_off_s * random.uniform(0.5, 1.5))
        self._back_off_s = min(self._back_off_s * 2, _BACK_OFF_S[1])

    async def _let_go(self) -> None:
        """Forget what the claim gave; what is committed stands in the outbox."""
        held, self._held, self.ready = self._held, None, False
        if held is not None:
            await held.publisher.stop()

    def _halt(self, error: Exception) -> None:
        self.halted = str(error)
        self._metrics.halted.labels(str(self.partition)).set(1)
        for source in range(len(self._intake.sources)):
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

    # -------------------------------------------------------------- work

    async def _work(self, held: Held) -> None:
        """Process, publish and look around until told to close; raises what is irregular."""
        publisher = held.publisher
        while True:
            self._wake.clear()
            self.moved_s = max(self.moved_s, held.moved_s, publisher.moved_s)
            if publisher.error is not None:
                raise publisher.error
            if self._doubted:
                why, self._doubted = self._doubted, ""
                raise Stale(why)
            if self._closing:
                if self._drain:
                    await self._drained(publisher)
                return
            if held.rollback is not None and held.rollback.caught_up(held.watermark):
                await held.make_good(held.rollback, lambda: self._closing)
                continue
            if await self._step(held):
                await self._upkeep.look_for_successor(held)
                continue
            if self.lag == 0:
                self.ready, self.moved_s = True, time.monotonic()
            await self._upkeep.look(held)
            await self._upkeep.look_for_successor(held)
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

    async def _step(self, held: Held) -> bool:
        """One batch; False where there is nothing to do or the outbox is too full."""
        if held.publisher.users > self._settings.worker.outbox_users:
            return False
        small = self._intake.buffered < _SMALL
        if small:
            if not self._intake.pending:
                return False
            await self._around.breath.turn()
        began, cpu_s = time.monotonic(), time.thread_time()
        try:
            return await self._take_step(held, began)
        finally:
            if small:
                self._around.breath.took(time.thread_time() - cpu_s)

    async def _take_step(self, held: Held, began: float) -> bool:
        for hole in self._intake.fill():
            await self._upkeep.mend(hole)
        if self._intake.decoded >= _MISROUTED_OF and held.watermark is None:
            self._check_routing()
        most = self._fitting()
        while True:
            taken = self._intake.take(most)
            if taken is None:
                self._resume()
                return False
            if not taken.records and began - self._committed_s < _MARKERS_S:
                return False
            idle = self._upkeep.idle.after(taken.counts)
            done = await held.process(taken, idle, self._intake.trails(taken.positions))
            if taken.records:
                self._bytes_each = done.counts["bytes"] / taken.records
            if not done.split:
                break
            most = max(1, min(self._fitting(), taken.records - taken.records // 8))
        held.demand(done)
        self._committed(held, taken, done, began)
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

    def _committed(self, held: Held, taken: Taken, done: Processed, began: float) -> None:
        crashpoints.passing("before_ack")
        self._intake.commit(taken, done.watermark.clocks)
        self._upkeep.idle.committed(taken.counts)
        held.advance(done, _parked(taken, done))
        self._resume()
        self._back_off_s, self._committed_s = _BACK_OFF_S[0], time.monotonic()
        self._report(taken, done, time.monotonic() - began)

    def _full(self, source: int) -> bool:
        return self._intake.sources[source].buffered > 2 * self._settings.worker.batch

    def _resume(self) -> None:
        for source in list(self._paused):
            if self._intake.sources[source].buffered < self._settings.worker.batch:
                self._paused.discard(source)
                self._around.resume(self.partition, source)

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


def _parked(taken: Taken, done: Processed) -> list[Parked]:
    """The step's dead letters, with what is at hand of their records."""
    if not done.letters:
        return []
    raw = {(s, r.offset): r for s, records in taken.raw.items() for r in records}
    said = {(r.source, r.offset): r.detail for r in taken.rejected}
    return [
        Parked(x, said.get((x.source, x.offset), ""), raw.get((x.source, x.offset)))
        for x in done.letters
    ]
