"""replay, digest, verify: does the log give what the store holds?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

from featurestore.backends.memory import MemoryStore
from featurestore.digest import Digest
from featurestore.errors import FeatureStoreError
from featurestore.store import Watermark
from livevalue.caveats import compacted
from livevalue.sources import FileOptions, Source
from scoring.generation import Generation, prior
from scoring.scorer import Scorer
from streams.backfill import backfill_files
from streams.errors import LogFileError
from streams.pipeline import Base, Pipeline
from streams.replay import Progress, digest_of, replay
from streams.settings import Settings
from streams.stores import Stores
from streams.verify import Verified, verify


async def replay_source(
    settings: Settings,
    src: Sequence[str],
    options: FileOptions,
    generation: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fold a log into a scratch store and score it; changes nothing live.

    generation: an id; without one that which serves, or `prior` where Redis is not reached.
    What was not folded is counted by reason; of files, the first places are there too.
    """
    source = Source(src, settings, options)
    served = await _generation(settings, generation)
    scorer = Scorer(served, settings.model, settings.features)
    pipeline = Pipeline(MemoryStore("scratch"), scorer, settings, publishes=False)
    async with aclosing(source.steps()) as steps:
        done = await replay(steps, pipeline, progress=progress)
    digest = await digest_of(pipeline.store, sorted(done.watermarks))
    return {
        **done.as_json(),
        **source.rejections(done.counts),
        "users": digest.users,
        "digest": digest.hex(),
    }


async def digest_live(settings: Settings, progress: Progress | None = None) -> dict[str, Any]:
    """Digest of the live store over exact fields, equal to replay's for the same log."""
    stores = Stores(settings)
    try:
        digest = Digest()
        for partition in range(settings.kafka.partitions):
            # While stores flip, one partition after the other, two serve.
            store = stores.store(await stores.store().active(partition) or "")
            digest.merge(await digest_of(store, [partition], progress))
        return {"applied": digest.applied, "users": digest.users, "digest": digest.hex()}
    finally:
        await stores.close()


async def verify_live(
    settings: Settings,
    sample: int | None,
    base: Sequence[str] = (),
    options: FileOptions | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Replay the log up to each page's watermark and compare it with the store.

    base: the files that the store was built from first, where it was.
    """
    stores = Stores(settings)
    try:
        names, warnings = await asyncio.to_thread(compacted, settings)
        share = None if sample is None else -(-sample // settings.kafka.partitions)
        found, scratch = Verified(), dict[str, Pipeline | None]()
        for partition in range(settings.kafka.partitions):
            store = stores.store(await stores.store().active(partition) or "")
            mark = (await store.load(partition, [])).watermark
            if mark is None:
                continue
            live = await stores.pipeline_for(partition)
            if mark.base and not base:
                raise LogFileError(
                    f"store {live.store.name!r} has a base of files: name them with --base"
                )
            if live.store.name not in scratch:
                scratch[live.store.name] = await _base(
                    settings, live, mark, base, options or FileOptions()
                )
            found = await verify(
                settings,
                live.store,
                await stores.generation(live.generation),
                [partition],
                sample=share,
                scratch=scratch[live.store.name],
                into=found,
                compacted=names,
                progress=progress,
            )
        return {
            "users": found.users,
            "different": found.different,
            "unswept": found.unswept,
            "excepted": dict(found.excepted),
            "first_differences": found.first_differences,
            "warnings": warnings,
        }
    finally:
        await stores.close()


async def _base(
    settings: Settings,
    live: Pipeline,
    mark: Watermark | None,
    base: Sequence[str],
    options: FileOptions,
) -> Pipeline | None:
    """A scratch store that holds the base of the live one."""
    if mark is None or not mark.base:
        return None
    source = Source(base, settings, options)
    if source.file_log is None:
        raise LogFileError("--base takes the files that the store was built from")
    scratch = Pipeline(MemoryStore("verify"), live.scorer, settings, publishes=False)
    cut_ms = Base.parse(mark.base).cut_ms
    await backfill_files(scratch, source.file_log, source.files, cut_ms)
    return scratch


async def _generation(settings: Settings, name: str) -> Generation:
    """The generation asked for; for a log in files no Redis is needed."""
    stores = Stores(settings)
    try:
        store = stores.store(await stores.store().active(0) or "")
        mark = (await store.load(0, [])).watermark
        # Asked of the registry, which a first start would write to: nothing live may change.
        known = name or (mark.generation if mark else await stores.registry().champion())
        return await stores.generation(known) if known else prior(settings.model)
    except FeatureStoreError:
        if name:
            raise
        return prior(settings.model)
    finally:
        await stores.close()
