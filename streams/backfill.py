"""Backfill: a log or files into an empty or aside store, publishing nothing on the way.

A builder is its own process with its own token. It folds with the same `Pipeline.process` as
the worker and never passes the active store's watermark, so that the worker can take it over at
equal positions (streams.takeover). It resumes where its store's watermark stands; for files the
watermark's `base` counts the steps already folded. When the worker finds a store whose
`progress` names a sweep, it publishes every user once.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import queue
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from featurestore.backends.redis import RedisStore
from featurestore.columns import EventBatch
from featurestore.store import FeatureStore
from scoring.generation import Generation, load
from scoring.scorer import Scorer
from streams import crashpoints
from streams.codec import Codec
from streams.errors import LogTruncated, Stale
from streams.kafkalog import KafkaLog
from streams.log import FileLog
from streams.pipeline import Base, Pipeline, Positions
from streams.replay import Progress, Replayed, file_steps, kafka_steps, replay_claimed
from streams.settings import Settings
from streams.sweep import PENDING

_FILE_STEP = 2000  # events a step; part of a base's identity, since resuming counts steps


def builder(store: FeatureStore, settings: Settings, generation: Generation) -> Pipeline:
    """A pipeline that builds a store aside: no outbox, no documents, a sweep pending."""
    scorer = Scorer(generation, settings.model, settings.features)
    return Pipeline(store, scorer, settings, publishes=False, progress=PENDING)


async def backfill_kafka(
    pipeline: Pipeline,
    partitions: Sequence[int],
    topic_ids: str,
    limits: dict[int, tuple[int, ...]] | None = None,
    progress: Progress | None = None,
) -> Replayed:
    """Fold the configured topics from the store's watermark up to their ends (or `limits`)."""
    settings = pipeline.settings
    codec = Codec(settings)
    done = Replayed()
    async with KafkaLog(settings.kafka) as log:
        ends = {p: (limits or {}).get(p) or await log.ends(p) for p in partitions}
        total = 0
        for p in partitions:
            mark = (await pipeline.store.load(p, [])).watermark
            total += sum(ends[p]) - (sum(mark.positions) if mark else 0)
        for p in partitions:
            # Claimed first: from then on nobody else moves what we read on from.
            claim = await pipeline.store.claim(p)
            begins = await log.starts(p)
            if claim.watermark is not None:
                done.watermarks[p] = claim.watermark
            elif any(begins):
                raise LogTruncated(
                    f"the log of partition {p} begins at {begins}, so a store built from it alone "
                    "would lack what retention deleted: build it from archive and log (`livevalue "
                    "recover rebuild --archive FOLDER --dry-run`) or from files, then the log"
                )
            steps = kafka_steps(log, codec, p, claim.watermark, ends[p], log_id=topic_ids)
            await replay_claimed(steps, pipeline, {p: claim.token}, done, progress, total)
            if p not in done.watermarks:
                await _stand(pipeline, p, begins, topic_ids, None)
    return done


async def _stand(
    pipeline: Pipeline, partition: int, positions: tuple[int, ...], log_id: str, base: str | None
) -> None:
    """Say where a partition stands of which there is nothing to fold, so that it can be flipped."""
    claim = await pipeline.store.claim(partition)
    if claim.watermark is not None:
        return
    count = len(positions)
    after = Positions(positions, ("",) * count, log_id, (False,) * count)
    await pipeline.process(partition, claim.token, None, after, EventBatch.empty(), [], base=base)


def files_hash(paths: Sequence[Path]) -> str:
    """Hash of the contents of `paths`, by which a store knows its base."""
    total = hashlib.blake2b(digest_size=16)
    for path in sorted(paths):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


async def backfill_files(
    pipeline: Pipeline,
    log: FileLog,
    paths: Sequence[Path],
    cut_ms: int | None,
    progress: Progress | None = None,
) -> Replayed:
    """Fold files as the store's base, up to `cut_ms` of event time; goes on where it stopped.

    Raises Stale where the store was built from other files or already follows the log.
    """
    settings = pipeline.settings
    sources = len(settings.kafka.sources)
    done, files = Replayed(), files_hash(paths)
    tokens: dict[int, str] = {}
    steps: Counter[int] = Counter()
    async for step in file_steps(log, settings.kafka.partitions, sources, _FILE_STEP):
        p = step.partition
        if p not in tokens:
            claim = await pipeline.store.claim(p)
            tokens[p] = claim.token
            if claim.watermark is not None:
                done.watermarks[p] = claim.watermark
        before = done.watermarks.get(p)
        steps[p] += 1
        base = Base.parse(before.base) if before and before.base else Base(files, cut_ms, 0)
        other = (base.files, base.cut_ms) != (files, cut_ms)
        if not other and steps[p] <= base.steps:
            continue
        if other or (before and any(before.positions)):
            raise Stale(
                f"store {pipeline.store.name!r} was built from other files or follows the log "
                "already: name another with --store, or drop it (`livevalue stores drop`)"
            )
        after = step.after
        if before is not None:
            after = replace(after, marks=before.marks, log_id=before.log_id)
        batch = step.batch if cut_ms is None else step.batch.before(cut_ms)
        result = await pipeline.process(
            p,
            tokens[p],
            before,
            after,
            batch,
            step.rejected,
            capped=False,
            base=Base(files, cut_ms, steps[p]).text(),
        )
        if result.outcome != "OK":
            raise Stale(f"partition {p} of store {pipeline.store.name!r}: {result.outcome}")
        crashpoints.passing("backfill_step")
        done.watermarks[p] = result.watermark
        done.events += batch.size
        done.counts.update(result.counts)
        if progress:
            progress(done.events, None)
    for p in set(range(settings.kafka.partitions)) - set(tokens):
        # The cut holds for partitions too of whose users the files know nothing.
        await _stand(pipeline, p, (0,) * sources, "", Base(files, cut_ms, 0).text())
    return done


def in_parallel(
    settings: Settings,
    store: str,
    generation_files: dict[str, bytes],
    topic_ids: str,
    jobs: int,
    limits: dict[int, tuple[int, ...]] | None = None,
    progress: Progress | None = None,
) -> Replayed:
    """`backfill_kafka` with the partitions spread over `jobs` processes."""
    partitions = list(range(settings.kafka.partitions))
    shares = [partitions[j::jobs] for j in range(jobs) if partitions[j::jobs]]
    context = multiprocessing.get_context("spawn")
    answers: Queue[tuple[int, Any]] = context.Queue()
    workers = [
        context.Process(
            target=_job,
            args=(number, settings, store, generation_files, topic_ids, share, limits, answers),
            daemon=True,
        )
        for number, share in enumerate(shares)
    ]
    for worker in workers:
        worker.start()
    try:
        return _gather(workers, answers, progress)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
            worker.join(10)


def _gather(workers: Sequence[Any], answers: Queue[Any], progress: Progress | None) -> Replayed:
    whole = Replayed()
    seen: dict[int, tuple[int, int]] = {}
    open_jobs = set(range(len(workers)))
    while open_jobs:
        try:
            number, what = answers.get(timeout=1.0)
        except queue.Empty:
            dead = [n for n in open_jobs if not workers[n].is_alive() and workers[n].exitcode]
            if dead:
                raise Stale(
                    f"a backfill process ended with code {workers[dead[0]].exitcode}; "
                    "run the same command again, it goes on where it stopped"
                ) from None
            continue
        if isinstance(what, Replayed):
            open_jobs.discard(number)
            whole.events += what.events
            whole.counts.update(what.counts)
            whole.watermarks.update(what.watermarks)
        elif isinstance(what, BaseException):
            raise what
        else:
            seen[number] = what
            if progress:
                progress(sum(d for d, _ in seen.values()), sum(t for _, t in seen.values()))
    return whole


def _job(
    number: int,
    settings: Settings,
    store: str,
    generation_files: dict[str, bytes],
    topic_ids: str,
    partitions: Sequence[int],
    limits: dict[int, tuple[int, ...]] | None,
    answers: Queue[Any],
) -> None:
    """One process of `in_parallel`."""

    def tell(events: int, total: int | None) -> None:
        answers.put((number, (events, total or events)))

    async def work() -> Replayed:
        crashpoints.arm()
        redis = RedisStore(settings.store, name=store)
        try:
            pipeline = builder(redis, settings, load(generation_files))
            return await backfill_kafka(pipeline, partitions, topic_ids, limits, tell)
        finally:
            await redis.close()

    answers.put((number, _caught(lambda: asyncio.run(work()))))


def _caught(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:  # noqa: BLE001  it is raised in the process that waits
        return error
