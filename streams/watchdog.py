"""The watchdog: a worker that does not get on exits non-zero, so that a supervisor starts it anew.

Kafka consumers can go silent while they look healthy. Per partition: lag (last stable offset,
asked of the broker, minus watermark) with a watermark that has not moved for `stall_s`; a log that
was made again or cut below the watermark, of which a consumer says nothing (it begins anew at
offset 0, and everything below the watermark passes for a repeat); retention that overtook what was
read; another leader, behind which the log may have been cut and written on; `scores` made again, or
cut below what was published. The owner then claims again, and its claim says what to run, or
publishes every user again. For the
worker: topics that vanished (Faust then rebalances to an empty assignment and says "ready") or have
more partitions than the settings say, or were made compacted where that is not accepted, no
group coordinator for long (a broker killed hard can answer NOT_COORDINATOR for minutes), or
every partition halted. Halted partitions are no lag: waiting would not help them. Nor is a broker
that does not answer us a stall: a worker that starts meanwhile would end at once, one that runs
goes on when the broker is back. Time counts from its last silence on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from aiokafka import TopicPartition  # type: ignore[import-untyped]

from streams import compaction, topics
from streams.ending import asked_to_end, end
from streams.errors import LogUnavailable, StreamsError
from streams.gap import LogReader
from streams.partition import Owner
from streams.settings import KafkaSettings, Settings
from streams.topics import TopicFound

log = logging.getLogger(__name__)

_EVERY_S = 1.0
_ENDS_EVERY_S = 2.0
_TOPICS_EVERY_S = 3.0
_MISSING_S = 2.0  # metadata can be incomplete while a broker starts; twice in a row it is not
_ENDS_PATIENCE_S = 0.5  # of one look; of a topic that is gone the driver asks for ten seconds


class Watchdog:
    """Looks every second; calls `give_up(message)` once it has seen enough."""

    def __init__(
        self,
        settings: Settings,
        owners: Callable[[], Mapping[int, Owner]],
        coordinated: Callable[[], bool],
        give_up: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._owners = owners
        self._coordinated = coordinated
        self._give_up = give_up
        self._reader = LogReader(settings.kafka)
        self._ends_s = self._topics_s = 0.0
        self._coordinated_s = time.monotonic()
        self._silent_s = 0.0  # when the broker last left a question of ours unanswered
        self._missing_since: float | None = None
        self._brought: dict[int, int] = {}  # by partition, how far `scores` was at the look before
        self._asking: asyncio.Task[None] | None = None
        self.looked_s = time.monotonic()  # livez asks how long ago the loop came by

    async def run(self) -> None:
        """Look until cancelled."""
        try:
            while True:
                await asyncio.sleep(_EVERY_S)
                self.looked_s = time.monotonic()
                try:
                    await self.look()
                except LogUnavailable as error:
                    log.warning("watchdog cannot ask the broker", extra={"error": str(error)})
                    self._silent_s = self._coordinated_s = time.monotonic()
                except StreamsError as error:
                    self._give_up(str(error))
                except asyncio.CancelledError:
                    if asked_to_end():
                        raise
                    log.warning("watchdog: a driver was cancelled by itself")
                except Exception as error:  # a driver's own: nobody would look any more
                    log.exception("watchdog: unexpected")
                    self._give_up(f"the watchdog cannot look: {error!r}; start the worker again")
        finally:
            if self._asking is not None:
                await end(self._asking)
            await self._reader.close()

    async def look(self) -> None:
        """One round."""
        now, stall_s = time.monotonic(), self._settings.worker.stall_s
        owners = dict(self._owners())
        live = {p: o for p, o in owners.items() if not o.halted}
        if owners and not live:
            self._give_up(next(iter(owners.values())).halted)
            return
        since = now - stall_s
        stalled = [
            p
            for p, o in sorted(live.items())
            if o.lag > 0 and max(o.got_on_s, self._silent_s) < since
        ]
        if stalled:
            lags = ", ".join(f"{p}: {live[p].lag}" for p in stalled)
            self._give_up(
                f"the watermark has not moved for {stall_s:g} s though there is lag "
                f"(partition: records {lags}): start the worker again; if it stalls again, run "
                "`livevalue doctor`"
            )
            return
        self._look_at_coordinator(now, stall_s)
        if now - self._topics_s > _TOPICS_EVERY_S:
            self._topics_s = now
            await self._look_for_topics(now, live)
        if self._missing_since is not None:
            return  # nothing is to be had of its ends, and the next look is to come soon
        if self._asking is None and live and now - self._ends_s > _ENDS_EVERY_S:
            self._ends_s = now
            self._asking = asyncio.create_task(self._look_for_ends(live), name="watchdog-ends")
        if self._asking is not None:
            done, _ = await asyncio.wait([self._asking], timeout=_ENDS_PATIENCE_S)
            if done:
                asked, self._asking = self._asking, None
                await asked

    def _look_at_coordinator(self, now: float, stall_s: float) -> None:
        if self._coordinated():
            self._coordinated_s = now
        elif now - self._coordinated_s > stall_s:
            self._give_up(
                f"the broker has named no coordinator of group {self._settings.kafka.app!r} for "
                f"{stall_s:g} s: start the worker again; if it lasts, restart the broker"
            )

    async def _look_for_topics(self, now: float, live: Mapping[int, Owner]) -> None:
        asked_s = time.monotonic()
        there = await asyncio.to_thread(topics.all_found, self._settings)
        gone = [t.name for t in topics.wanted(self._settings.kafka) if t.name not in there]
        if not gone:
            self._missing_since = None
            self._compare(there, live)
            sources = self._settings.kafka.sources
            for p, owner in live.items():
                if all(p < there[t].partitions for t in sources):
                    owner.led([there[t].epochs[p] for t in sources], asked_s)
            return
        self._topics_s = now - _TOPICS_EVERY_S + _MISSING_S
        self._missing_since = self._missing_since or now
        if now - self._missing_since >= _MISSING_S:
            self._give_up(
                f"topic {', '.join(gone)} does not exist (any more): make it with "
                f"`livevalue topics --apply`, then {_then(self._settings.kafka, gone)}"
            )

    def _compare(self, there: Mapping[str, TopicFound], live: Mapping[int, Owner]) -> None:
        """The topics are there: are they those that we read?"""
        kafka = self._settings.kafka
        counts = {t: there[t].partitions for t in kafka.sources}
        more = [f"{t} ({count})" for t, count in counts.items() if count != kafka.partitions]
        if more:
            self._give_up(
                f"LIVEVALUE_KAFKA__PARTITIONS is {kafka.partitions}, yet the broker now counts "
                f"otherwise: {', '.join(more)}. Users have moved to other partitions: make new "
                "topics with that number, and build a store from archive and log "
                "(`livevalue backfill --help`)"
            )
            return
        if bad := topics.outputs_amiss(kafka, there):
            self._give_up(bad[0].message)
            return
        compacted = [t for t in kafka.sources if there[t].compacted]
        if compacted and kafka.compacted == "refuse":
            self._give_up(compaction.refusal(compacted[0]))
            return
        ids = ",".join(there[t].id for t in kafka.sources)
        outputs = (there[kafka.scores].id, there[kafka.published].id)
        for owner in live.values():
            if owner.log_id not in ("", ids):
                owner.doubt("a topic was made again under a running worker")
            if owner.outputs not in (None, outputs):
                owner.doubt("an output topic was made again under a running worker")

    async def _look_for_ends(self, live: Mapping[int, Owner]) -> None:
        sources = self._settings.kafka.sources
        tps = [TopicPartition(t, p) for p in live for t in sources]
        scores = {p: TopicPartition(self._settings.kafka.scores, p) for p in live}
        # Before the ends are asked for: what is committed meanwhile may lie beyond the answer.
        stood = {p: o.watermark.positions for p, o in live.items() if o.watermark is not None}
        # Those of a while ago: a transaction's end is not at once on every partition of it.
        brought, self._brought = self._brought, {p: o.scores_end for p, o in live.items()}
        bounds = await self._reader.bounds([*tps, *scores.values()])
        for p, owner in live.items():
            if bounds[scores[p]].end < min(brought.get(p, 0), owner.scores_end):
                owner.doubt(f"{scores[p].topic}/{p} ends before what was published")
            ends = [bounds[TopicPartition(t, p)].end for t in sources]
            starts = [bounds[TopicPartition(t, p)].start for t in sources]
            if p in stood and any(a < b for a, b in zip(owner.in_hand, starts, strict=True)):
                owner.doubt(f"the log of partition {p} begins at {starts}, behind what was read")
            if any(at > end for at, end in zip(stood.get(p, ()), ends, strict=False)):
                owner.doubt(f"the log of partition {p} ends at {ends}, before the watermark")
            owner.saw_end(ends)


def _then(kafka: KafkaSettings, gone: Sequence[str]) -> str:
    """What to do when topics that had vanished are there again."""
    if set(gone) & set(kafka.sources):
        return "see `livevalue recover --help`"
    anew = ", which publishes every user again" if set(gone) - {kafka.dlq} else ""
    lost = f"; the dead letters of {kafka.dlq} are gone" if kafka.dlq in gone else ""
    return f"start the worker{anew}{lost}"
