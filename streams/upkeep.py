"""What an owner does when there is time: holes, the watch, silence, sweeps, successors.

Nothing here is needed for the next batch. Each thing is done at its own pace, and each commit
goes the one way (streams.held): what fails raises, and the partition is claimed anew.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from aiokafka import TopicPartition  # type: ignore[import-untyped]

from featurestore.columns import NO_TIME
from featurestore.store import Watermark
from streams import crashpoints, sweep
from streams.gap import LogReader
from streams.held import REFRESH_USERS, Held
from streams.idle import IdleSources
from streams.intake import Hole, Intake
from streams.surroundings import Surroundings

log = logging.getLogger(__name__)

_WATCH_S = 3.0  # an idle partition would not notice a roll-back by itself
# A source with unread records that delivers nothing for so long is read directly; after a claim
# at once, since Faust may take seconds to deliver the first record (3.4 s were seen).
_QUIET_S = 1.0
_SILENCE_S = 1.0
_SUCCESSION_S = 1.0


class Upkeep:
    """Looks after one partition between its batches.

    wake: called where there may be more to do at once.
    """

    def __init__(
        self,
        partition: int,
        around: Surroundings,
        reader: LogReader,
        intake: Intake,
        wake: Callable[[], None],
    ) -> None:
        self._partition = partition
        self._around = around
        self._worker = around.settings.worker
        self._reader = reader
        self._intake = intake
        self._wake = wake
        self._tps = [TopicPartition(t, partition) for t in around.settings.kafka.sources]
        self.idle = IdleSources(intake.sources, self._worker)
        self._watched_s = self._silence_s = self._succeeded_s = 0.0
        self._delivered_s = [-math.inf] * len(self._tps)
        succession = around.succession_for
        self._succession = succession(partition) if succession is not None else None

    def begin(self, mark: Watermark | None) -> None:
        """After a claim."""
        self._watched_s = time.monotonic()
        self.idle.begin(mark.idle if mark else ())

    def delivered(self, source: int) -> None:
        """A source has delivered something."""
        self._delivered_s[source] = time.monotonic()

    async def close(self) -> None:
        """Stop what runs in the background."""
        if self._succession is not None:
            await self._succession.close()

    async def mend(self, hole: Hole) -> None:
        """Read a hole straight from the log, in batches, into the intake."""
        tp = self._tps[hole.source]
        records, reached = await self._reader.read(tp, hole.low, hole.high, self._worker.batch)
        self._around.metrics.gap_records.inc(len(records))
        log.info(
            "read again from the log",
            extra={
                "partition": self._partition,
                "topic": tp.topic,
                "from": hole.low,
                "to": reached,
                "records": len(records),
            },
        )
        self._intake.sources[hole.source].trail.saw(records)
        if reached > self._intake.sources[hole.source].cursor:
            self._intake.insert(hole.source, records, reached)
        if reached < hole.high:
            self._wake()

    async def look(self, held: Held) -> None:
        """Nothing to process: read what nobody delivers, watch, and speak for the silent."""
        now = time.monotonic()
        for hole in self._intake.waiting_for():
            if now - self._delivered_s[hole.source] > _QUIET_S:
                await self.mend(hole)
                self._wake()
                return
        if now - self._watched_s > _WATCH_S:
            await held.watch()
            self._watched_s = time.monotonic()
        mark = held.watermark
        if held.rollback is not None or mark is None:
            return
        if held.publisher.users > self._worker.outbox_users:
            return
        if sweep.pending(mark):
            await self._sweep(held, mark)
        elif now - self._silence_s > _SILENCE_S:
            await self._speak_for_silent(held, mark)
            self._silence_s = time.monotonic()

    async def look_for_successor(self, held: Held) -> None:
        """Every few seconds, busy or not: is another store announced, and how far is it?

        Raises Flipped once the other store serves.
        """
        now = time.monotonic()
        if self._succession is None or now - self._succeeded_s < _SUCCESSION_S:
            return
        if held.rollback is not None:
            return
        self._succeeded_s = now
        if held.watermark is None:
            # A flip needs equal positions: say that we stand at the log's beginning.
            if await held.pipeline.store.next(self._partition) is None:
                return
            nothing = self._intake.nothing()
            idle = self.idle.after(nothing.counts)
            trails = self._intake.trails(nothing.positions)
            done = await held.process(nothing, idle, trails)
            held.demand(done)
            held.advance(done)
        assert held.watermark is not None
        await self._succession.look(held.pipeline.store, held.token, held.watermark)

    async def _speak_for_silent(self, held: Held, mark: Watermark) -> None:
        """Publish users whose value has moved by silence alone."""
        now_ms = self._now_ms(mark)
        if now_ms == NO_TIME:
            return
        users = await held.pipeline.store.due(self._partition, now_ms, REFRESH_USERS)
        if users:
            held.advance(await held.refresh(users, now_ms, "silence"))

    async def _sweep(self, held: Held, mark: Watermark) -> None:
        """The next page of a pending sweep: every user once, under this generation."""
        done = await sweep.sweep_page(
            held.pipeline,
            held.pipeline.store,
            self._partition,
            held.token,
            mark,
            # Not behind what the store that served before has said of silent users.
            self._now_ms(mark),
        )
        crashpoints.passing("sweep_page")
        held.demand(done)
        held.advance(done)
        self._wake()

    def _now_ms(self, mark: Watermark) -> int:
        """Now as the deployment counts it."""
        return self._around.now_ms() if self._worker.clock == "wall" else max(mark.clocks)
