"""The claim of a partition: fence whoever had it, find out where everything stands, reconcile.

In this order: write a new token, start the transactional producer, read the last published
record, check that log and store are the ones we know. Reconcile: what the outbox names after the
published record is published; where the published identity is missing from it, Redis was rolled
back (streams.rollback). A published record that is missing, or lower than the watermark or `scores`
says, is not believed but read again; only after a set time is everything swept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from aiokafka import TopicPartition  # type: ignore[import-untyped]

from featurestore.columns import NO_TIME
from featurestore.store import Claim, OutboxEntry, Watermark
from streams import crashpoints, leaders, sweep
from streams.emit import Parked, Published, revision, seal
from streams.errors import Fenced, PublishError
from streams.gap import Bounds, LogReader
from streams.held import Held
from streams.intake import Intake
from streams.logid import check_log, check_store, check_topics, cut_mark
from streams.pipeline import Pipeline
from streams.publish import Publisher, Waiting
from streams.rollback import Rollback, unpublished
from streams.surroundings import Surroundings
from streams.topics import Logs
from streams.trail import UNKNOWN, cuts

log = logging.getLogger(__name__)

# A published record that should be there is read again this long: well below `worker.stall_s`,
# since nothing moves meanwhile, and the next worker would begin to wait anew.
_PUBLISHED_PATIENCE_S = 12.0
_PAGE = 1000  # documents read at once


class Claims:
    """The claims of one partition, and what has to be remembered from one to the next.

    closing: says that the partition was revoked; every await may find it so.
    progressed: called whenever the publisher got on.
    """

    def __init__(
        self,
        partition: int,
        around: Surroundings,
        reader: LogReader,
        intake: Intake,
        closing: Callable[[], bool],
        progressed: Callable[[], None],
    ) -> None:
        self._partition = partition
        self._around = around
        self._reader = reader
        self._intake = intake
        self._closing = closing
        self._progressed = progressed
        self._tps = [TopicPartition(t, partition) for t in around.settings.kafka.sources]
        self._generation = ""  # as the metrics say
        self._missing_since: float | None = None
        self._last: Held | None = None  # what the claim before gave
        self._lost = False  # `scores` has lost values, and not everybody is on the way again

    async def claim(self) -> Held:
        """Steps 1, 5 and 6 of the protocol; the intake then begins at the watermark."""
        around, p = self._around, self._partition
        pipeline = await around.pipeline_for(p)
        logs = await around.logs()
        # Before the token: a store of other topics may be another deployment's, at work.
        await self._check_whose(pipeline, (await pipeline.store.load(p, [])).watermark, logs.id)
        claim = await pipeline.store.claim(p)
        crashpoints.passing("claim_token")
        self._still_ours()
        around.metrics.claims.inc()
        self._say_generation(pipeline.generation)
        await self._check_whose(pipeline, claim.watermark, logs.id)
        if claim.watermark is not None:
            # Of a store begun by a recovery, or of which the blob was lost.
            await pipeline.fingerprint.keep(pipeline.store)
        publisher = Publisher(
            p,
            around.settings,
            pipeline.store,
            claim.token,
            logs.id,
            (logs.scores_id, logs.published_id),
            self._reader,
            around.pacer,
            around.metrics,
            self._progressed,
        )
        self._lost = self._lost or _owes_everybody(self._last)
        await publisher.start()
        crashpoints.passing("claim_producer")
        try:
            self._still_ours()
            held = Held(
                p, pipeline, claim.token, logs.id, publisher, around.metrics, claim.watermark
            )
            self._last = held
            await self._take_on(claim, held, logs)
        except BaseException:
            await publisher.stop()
            raise
        publisher.begin()
        return held

    async def _check_whose(self, pipeline: Pipeline, mark: Watermark | None, log_id: str) -> None:
        """Raise where the store was folded with other settings, or from other topics."""
        await pipeline.fingerprint.check(pipeline.store, mark)
        if mark is not None:
            sources = self._around.settings.kafka.sources
            check_topics(self._partition, sources, mark.log_id, log_id)

    def _still_ours(self) -> None:
        if self._closing():
            raise Fenced(f"partition {self._partition} was revoked during its claim")

    def _say_generation(self, generation: str) -> None:
        gauge, p = self._around.metrics.generation, str(self._partition)
        if self._generation and self._generation != generation:
            gauge.remove(p, self._generation)
        self._generation = generation
        gauge.labels(p, generation).set(1)

    async def _take_on(self, claim: Claim, held: Held, logs: Logs) -> None:
        """Check that log and store are the ones we know, and go on where the store stands."""
        p, mark = self._partition, claim.watermark
        published = await held.publisher.last_published()
        scores = TopicPartition(self._around.settings.kafka.scores, p)
        asked = [source.end for source in self._intake.sources]
        found = await self._reader.bounds([*self._tps, scores])
        bounds = [found[tp] for tp in self._tps]
        check_store(p, mark, published, bounds, found[scores])
        if mark is not None:
            mark = await self._look_for_cuts(held, mark, bounds, logs)
        await check_log(self._reader, self._tps, mark, published, logs.id, bounds, logs.compacted)
        self._still_ours()
        for source, epochs in zip(self._intake.sources, logs.epochs, strict=True):
            source.trail.led(epochs[p], logs.asked_s)
        self._begin_at(mark, bounds, asked)
        crashpoints.passing("claim_published")
        reached = await self._look_at_scores(scores, found[scores], published, held.publisher, logs)
        held.seq_at_least = published.begun if published else 0
        await self._reconcile(claim, published, held, reached)
        await self._publish_everybody(held)
        log.info(
            "partition claimed",
            extra={
                "partition": p,
                "positions": [s.position for s in self._intake.sources],
                "ends": [s.end for s in self._intake.sources],
                "seq": mark.identity.seq if mark else 0,
                "outbox": len(claim.outbox),
                "published_seq": published.identity.seq if published else None,
                "rolled_back": held.rollback is not None,
            },
        )

    async def _look_for_cuts(
        self, held: Held, mark: Watermark, bounds: Sequence[Bounds], logs: Logs
    ) -> Watermark:
        """Let the watermark say where the log was cut below what was read: we halt, and may end."""
        trails = [source.trail for source in self._intake.sources]
        for trail, text in zip(trails, mark.trails, strict=False):
            trail.recall(text)
        other = {
            s: trail.epoch
            for s, trail in enumerate(trails)
            if trail.epoch not in (UNKNOWN, logs.epochs[s][self._partition])
        }
        asked = {(self._tps[s].topic, self._partition): epoch for s, epoch in other.items()}
        ends = await asyncio.to_thread(leaders.epoch_ends, self._around.settings.kafka, asked)
        ended = {s: ends.get((self._tps[s].topic, self._partition)) for s in other}
        cut = await cuts(self._reader, self._tps, trails, ended, bounds, logs.compacted)
        self._still_ours()
        if not cut:
            return mark
        marks = list(mark.marks or ("",) * len(self._tps))
        texts = list(mark.trails or ("",) * len(self._tps))
        for s, offset in cut.items():
            marks[s], texts[s] = cut_mark(offset), ""
        return await held.remark(tuple(marks), tuple(texts))

    def _begin_at(self, mark: Watermark | None, bounds: list[Bounds], asked: Sequence[int]) -> None:
        """Where the store stands; behind a base of files, where the log begins.

        asked: the ends known when `bounds` were asked for. An end told since is newer than the
        answer, and nobody may tell it again.
        """
        count = len(self._tps)
        positions = mark.positions if mark else (0,) * count
        if mark is not None and mark.base:
            positions = tuple(p or b.start for p, b in zip(positions, bounds, strict=True))
        self._intake.reset(
            positions,
            mark.clocks if mark else (NO_TIME,) * count,
            mark.marks if mark and mark.marks else ("",) * count,
        )
        for source, at, before in zip(self._intake.sources, bounds, asked, strict=True):
            source.end = max(at.end, source.end) if source.end > before else at.end

    async def _look_at_scores(
        self,
        tp: TopicPartition,
        found: Bounds,
        published: Published | None,
        publisher: Publisher,
        logs: Logs,
    ) -> int:
        """Does `scores` hold what was published? -> the revision of its last document, or 0.

        The publisher goes on from what there is.
        """
        last = await self._reader.last(tp)
        ends = seal(last.key, last.value) if last is not None else ""
        why = _why_lost(published, logs, found, ends)
        if published is not None and why:
            self._lost = True
            log.error(
                "values on scores were lost, publishing every user again",
                extra={
                    "partition": self._partition,
                    "why": why,
                    "end": found.end,
                    "published_end": published.scores_end,
                },
            )
        publisher.scores_start, publisher.scores_end = found.start, found.end
        publisher.scores_last = ends
        if last is not None and last.value is None:
            last = await self._reader.last(tp, before=last.offset, valued=True)
        return revision(last.value) if last is not None else 0

    async def _publish_everybody(self, held: Held) -> None:
        """Where `scores` has lost values: sweep, at once or when a roll-back is made good."""
        if not self._lost or held.watermark is None:
            return
        if held.rollback is not None:
            held.rollback.everybody = True
        else:
            held.publisher.put(await self._begin_sweep(held))
        self._lost = False

    async def _begin_sweep(self, held: Held) -> Waiting:
        """Commit that every user is to be published again."""
        done = await held.refresh([], None, "recover", progress=sweep.PENDING)
        held.watermark = mark = done.watermark
        return Waiting.of(mark, done.updates)

    async def _reconcile(
        self, claim: Claim, published: Published | None, held: Held, revision: int
    ) -> None:
        """What the outbox still has to say, by the identity of what was published last.

        revision: of the last document on `scores`, whose commit was published for certain.
        """
        mark = claim.watermark
        known = mark.published if mark else None
        said = published.identity if published else None
        reached = max(known.seq if known else 0, revision)
        swept: Waiting | None = None
        if reached > (max(published.identity.seq, published.begun) if published else 0):
            swept = await self._doubt(reached, published, held)
            # Redis may have gone back as well: whatever is not beyond that has been said.
            new: Sequence[OutboxEntry] | None = [
                entry for entry in claim.outbox if entry.identity.seq > reached
            ]
        else:
            new = unpublished(claim.outbox, said)
            if new is not None and published is not None and published.begun:
                self._lost = True  # what was said in part was another's, which had gone back
        self._missing_since = None
        if new is None:
            assert published is not None, "without a published record nothing can be missing"
            self._roll_back(claim, published, held)
            return
        if swept is None and published is not None and not new and published.identity != known:
            # Published, but the server went away before the trim that says so.
            await held.pipeline.store.trim(self._partition, claim.token, published.identity)
        if new and mark is not None:
            documents = await self._documents(held, new)
            parked = [Parked(letter) for e in new for letter in e.letters]
            held.publisher.put(Waiting.of(mark, documents, parked))
        if swept is not None:
            held.publisher.put(swept)

    async def _documents(self, held: Held, new: Sequence[OutboxEntry]) -> dict[str, bytes]:
        """What the store holds of the users of `new`, the latest last; b"" of who was erased.

        Not read by the claim's script: an outbox may name all of a partition's users. In the order
        of their revisions, since the last document on `scores` says how far those have come.
        """
        touched = dict.fromkeys(u for e in reversed(new) for u in e.users)
        users, store = list(reversed(touched)), held.pipeline.store
        documents: dict[str, bytes] = {}
        for low in range(0, len(users), _PAGE):
            page = users[low : low + _PAGE]
            found = await store.documents(self._partition, page)
            documents |= {user: raw or b"" for user, raw in zip(page, found, strict=True)}
        await held.watch()  # they are of the outbox that we were given: no other, none rolled back
        return documents

    async def _doubt(self, reached: int, published: Published | None, held: Held) -> Waiting:
        """A published record is missing, or lower than commit `reached`, which was published.

        It is read again for a while; then everybody is swept.
        """
        now = time.monotonic()
        self._missing_since = self._missing_since or now
        if now - self._missing_since < _PUBLISHED_PATIENCE_S:
            raise PublishError(
                f"the last published record of partition {self._partition} is "
                f"{published.identity.seq if published else 'missing'}, yet commit {reached} was "
                "published: reading it again"
            )
        log.error(
            "published record lost, publishing every user again",
            extra={"partition": self._partition, "reached": reached},
        )
        held.seq_at_least = max(held.seq_at_least, reached)
        return await self._begin_sweep(held)

    def _roll_back(self, claim: Claim, published: Published, held: Held) -> None:
        """Redis was rolled back: publish nothing before it has caught up."""
        self._around.metrics.rolled_back.inc()
        mark = claim.watermark
        # Not its seq: catching up raises that, and whoever goes on with it must know as well.
        known = mark.published.seq if mark and mark.published else 0
        store = held.pipeline.store.name
        held.rollback = Rollback.behind(published, claim.outbox, store, known)
        held.seq_at_least = max(published.begun, published.identity.seq)
        log.warning(
            "redis was rolled back",
            extra={
                "partition": self._partition,
                "store_seq": mark.identity.seq if mark else 0,
                "store_positions": mark.positions if mark else None,
                "published_seq": published.identity.seq,
                "published_positions": published.positions,
                "users": len(held.rollback.users),
            },
        )


def _why_lost(published: Published | None, logs: Logs, found: Bounds, ends: str) -> str:
    """Was `scores` made again, cut below what a transaction had brought it to, or deleted from?

    ends: seal of its last record. Cut: it ends before that, or, where other records have taken the
    place, with another value or none. Deleted from, by age: it begins later; what compaction takes
    does not move that.
    """
    if published is None or not published.scores_id:
        return ""
    if published.scores_id != logs.scores_id:
        return "the topic was made again"
    if found.end < published.scores_end or published.scores_last not in ("", ends):
        return "the topic was cut"
    return "its beginning was deleted" if found.start > published.scores_start else ""


def _owes_everybody(last: Held | None) -> bool:
    """Whether a claim found, or was told, that `scores` lost values, and ended before it swept."""
    if last is None:
        return False
    return last.publisher.scores_cut or (last.rollback is not None and last.rollback.everybody)
