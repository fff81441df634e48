"""stores, backfill, flip, archive: what is built aside, and which store serves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from featurestore.backends.checks import drops_active
from featurestore.errors import StoreError
from featurestore.settings import StoreSettings
from featurestore.store import FeatureStore
from livevalue.caveats import caveats
from livevalue.output import Refused
from livevalue.sources import FileOptions, Source
from scoring.generation import Generation, dump
from streams import topics
from streams.archive import archive
from streams.backfill import backfill_files, backfill_kafka, builder, in_parallel
from streams.errors import LogFileError, Stale
from streams.kafkalog import KafkaLog
from streams.replay import Progress, Replayed, digest_of
from streams.settings import Settings
from streams.stores import Stores
from streams.topics import log_id

_FLIP_S = 600.0  # patience with the workers of a large store
_LOOK_S = 0.5
# A process takes as long to start as it takes to fold so many.
_RECORDS_A_JOB = 100_000


async def list_stores(settings: Settings) -> dict[str, Any]:
    """All stores of the deployment and the one that serves."""
    stores = Stores(settings)
    try:
        found = await stores.store().stores()
        return {
            "stores": [
                {
                    "name": info.name,
                    "active": info.active,
                    "generation": info.generation,
                    "fingerprint": info.fingerprint,
                    "positions": {str(p): list(w) for p, w in info.positions.items()},
                }
                for info in found
            ],
            "active": next((info.name for info in found if info.active), None),
        }
    finally:
        await stores.close()


async def backfill(
    settings: Settings,
    src: Sequence[str],
    store: str,
    until: datetime | None,
    options: FileOptions,
    *,
    generation: str = "",
    jobs: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A log into an empty or aside store; resumable. Files become its base, up to `until`."""
    name = store or settings.store.name
    if not _is_name(name):
        raise Refused(
            f"--store {name!r} is no name of a store: use 1 to 32 of a to z, 0 to 9 and -"
        )
    stores = Stores(settings)
    try:
        if await stores.store().active(0) == name:
            raise Stale(
                f"store {name!r} serves readers now: name another with --store, then "
                f"`livevalue stores flip` it"
            )
        served = await stores.generation(generation)
        source = Source(src, settings, options)
        done = await build(settings, stores.store(name), served, source, until, jobs, progress)
        digest = await digest_of(stores.store(name), range(settings.kafka.partitions))
        return {
            **done.as_json(),
            **source.rejections(done.counts),
            "store": name,
            "users": digest.users,
            "digest": digest.hex(),
        }
    finally:
        await stores.close()


async def build(
    settings: Settings,
    store: FeatureStore,
    served: Generation,
    source: Source,
    until: datetime | None = None,
    jobs: int = 0,
    progress: Progress | None = None,
    *,
    cut_ms: int | None = None,
    limits: dict[int, tuple[int, ...]] | None = None,
) -> Replayed:
    """Fold `source` into `store` with `served`: files first, as the base, then the topics.

    The base ends at `until` (or `cut_ms`), the topics at `limits` where given.
    """
    done = Replayed()
    if source.archives:
        raise LogFileError(
            f"{source.archives[0]} is an archive: `livevalue recover rebuild --archive FOLDER` "
            "builds a store from one; backfill takes kafka or files"
        )
    if source.file_log is not None:
        pipeline = builder(store, settings, served)
        cut_ms = int(until.timestamp() * 1000) if until else cut_ms
        files = await backfill_files(pipeline, source.file_log, source.files, cut_ms, progress)
        done.events += files.events
        done.counts.update(files.counts)
    if source.kafka:
        identity = log_id(settings, await asyncio.to_thread(topics.topic_ids, settings))
        jobs = jobs or await _jobs(settings)
        if jobs == 1:
            pipeline = builder(store, settings, served)
            everything = range(settings.kafka.partitions)
            log = await backfill_kafka(pipeline, everything, identity, limits, progress)
        else:
            work = (settings, store.name, dump(served), identity, jobs, limits, progress)
            log = await asyncio.to_thread(in_parallel, *work)
        done.events += log.events
        done.counts.update(log.counts)
    return done


async def _jobs(settings: Settings) -> int:
    """Processes that the topics are worth: one a core, fewer for a short log."""
    partitions = settings.kafka.partitions
    async with KafkaLog(settings.kafka) as log:
        edges = [(await log.starts(p), await log.ends(p)) for p in range(partitions)]
    records = sum(sum(ends) - sum(starts) for starts, ends in edges)
    return max(1, min(os.cpu_count() or 1, partitions, records // _RECORDS_A_JOB))


async def flip(
    settings: Settings, name: str, told: Callable[[str], None], patience_s: float = _FLIP_S
) -> dict[str, Any]:
    """Ask the workers to take `name` over at equal positions; wait until it serves everywhere."""
    stores = Stores(settings)
    try:
        store = stores.store()
        partitions = range(settings.kafka.partitions)
        known = {info.name: info for info in await store.stores()}
        if name not in known:
            raise Stale(f"there is no store {name!r}: `livevalue stores ls` shows them")
        if missing := sorted(set(partitions) - set(known[name].positions)):
            raise Stale(
                f"store {name!r} holds nothing of partitions {missing}: build them first "
                f"(`livevalue backfill kafka --store {name}`)"
            )
        waiting = {p for p in partitions if await store.active(p) != name}
        for partition in waiting:
            await store.set_next(partition, name)
        until = asyncio.get_running_loop().time() + patience_s
        while waiting:
            served = {p for p in waiting if await store.active(p) == name}
            if served:
                waiting -= served
                told(f"{name} serves {len(partitions) - len(waiting)}/{len(partitions)} partitions")
            if waiting and asyncio.get_running_loop().time() > until:
                raise Stale(
                    f"partitions {sorted(waiting)} were not taken over within {patience_s:.0f} s: "
                    "is a worker running (`livevalue run`)? It goes on when one is"
                )
            await asyncio.sleep(_LOOK_S if waiting else 0)
        return {"active": name, "stores": sorted(known)}
    finally:
        await stores.close()


async def drop(settings: Settings, name: str) -> dict[str, Any]:
    """Delete a store that serves nowhere and is not about to; also the rest of one half dropped."""
    none = Stale(f"there is no store {name!r}: `livevalue stores ls` shows them")
    if not _is_name(name):
        raise none
    stores = Stores(settings)
    try:
        store, partitions = stores.store(), range(settings.kafka.partitions)
        # Of every partition before the first is touched: a flip may have come as far as one.
        for p in partitions:
            if name in (await store.active(p), await store.next(p)):
                raise StoreError(drops_active(name, p))
        known = {info.name for info in await store.stores()}
        keys = sum([await stores.store(name).drop(p) for p in partitions])
        # A store that was half dropped is listed no more, but still holds keys.
        if name not in known and not keys:
            raise none
        return {"store": name, "keys": keys}
    finally:
        await stores.close()


def _is_name(name: str) -> bool:
    """Is it what the setting `store.name` allows? Keys are made of it.

    >>> _is_name("g-3f9c0a1b22cd"), _is_name("Bad_Name"), _is_name("")
    (True, False, False)
    """
    try:
        StoreSettings(name=name)
    except ValidationError:
        return False
    return True


async def archive_log(
    settings: Settings, folder: Path, progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Copy what the log holds beyond the archive's end."""
    ids = await asyncio.to_thread(topics.topic_ids, settings)
    done = await archive(settings, folder, ids, progress)
    warnings = await asyncio.to_thread(caveats, settings)
    return {"files": done.files, "events": done.events, "warnings": warnings}
