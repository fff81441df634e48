"""recover: what an operator decides where a worker halts rather than guess.

adopt keeps the store and follows the log as it is now; wipe begins anew at the log's start; rebuild
folds archive and log into a store aside and lets it serve. Each is a plan, partition by
partition, that can be read first (`--dry-run`).

The order is the worker's own: claim the store (its writer is fenced), start the partition's
transactional producer (a zombie cannot publish any more), read what was published last, then
one forced step of the store (`FeatureStore.reset`). What was published stays known by one outbox
entry of nobody, so that seq goes on above it. Without that entry the worker sees a Redis rolled
back: it publishes nothing until it is where publishing had come, and then each user once.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Container
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from aiokafka import TopicPartition  # type: ignore[import-untyped]

from featurestore.errors import StoreHalfDone
from featurestore.store import CommitOutcome, FeatureStore, Identity, Watermark
from livevalue.jobs.recovery_plans import Found, Plan, adopt, serve, wipe
from livevalue.output import Refused
from streams import compaction, topics
from streams.emit import Published
from streams.fingerprint import Fingerprint
from streams.gap import Bounds, LogReader
from streams.logid import cut_at, record_mark, rewritten
from streams.metrics import Metrics
from streams.publish import Pacer, Publisher
from streams.replay import Progress
from streams.settings import Settings
from streams.stores import Stores
from streams.topics import log_id

Action = Literal["adopt", "wipe", "rebuild"]

_TRIES = 5  # a worker that halts again and again claims again and again


class Recovery:
    """One run of the command: what it looks at, and what it changes."""

    def __init__(
        self, settings: Settings, stores: Stores, log_id: str, compacted: Container[str] = ()
    ) -> None:
        self.settings = settings
        self.stores = stores
        self._log_id = log_id
        self._compacted = compacted
        self._reader = LogReader(settings.kafka)

    async def close(self) -> None:
        """Close what was opened; the stores are the caller's."""
        await self._reader.close()

    async def active(self, partition: int) -> FeatureStore:
        """The store that serves, else that of a first start."""
        return self.stores.store(await self.stores.store().active(partition) or "")

    async def generation(self, partition: int) -> str:
        """Generation that a partition begun anew goes on with."""
        try:
            mark = (await (await self.active(partition)).load(partition, [])).watermark
        except StoreHalfDone:
            mark = None
        return mark.generation if mark else (await self.stores.generation("")).id

    async def check_settings(self, partition: int, store: FeatureStore) -> None:
        """StoreMismatch where the store was folded with other settings, or from other topics."""
        mark = (await store.load(partition, [])).watermark
        if mark is not None:
            await Fingerprint(self.settings, mark.generation).check(store, mark)

    async def look(self, partition: int, store: FeatureStore) -> Found:
        """Read only: what there is, as far as it can be known without a claim."""
        try:
            mark, half = (await store.load(partition, [])).watermark, False
        except StoreHalfDone:
            mark, half = None, True
        published = TopicPartition(self.settings.kafka.published, partition)
        record = await self._reader.last(published)
        said = Published.decode(record.value) if record and record.value else None
        return await self._found(partition, mark, half, said)

    async def apply(
        self,
        partition: int,
        store: FeatureStore,
        make: Callable[[Found], Plan],
        *,
        wipes: bool,
    ) -> Plan:
        """Claim, fence, look again, and take the step that `make` then plans."""
        for _ in range(_TRIES):
            try:
                claim = await store.claim(partition)
                token, mark, half = claim.token, claim.watermark, False
            except StoreHalfDone:
                if not wipes:
                    raise
                token, mark, half = secrets.token_hex(16), None, True
            said = await self._fence(partition, store, token)
            plan = make(await self._found(partition, mark, half, said))
            if plan.watermark is None:
                return plan
            identity = Identity(plan.watermark.identity.seq, token)
            marks = await self._marks(partition, plan.watermark)
            outcome = await store.reset(
                partition,
                token,
                replace(plan.watermark, identity=identity, marks=marks),
                wipe=wipes,
                published=plan.published,
            )
            if outcome is CommitOutcome.OK:
                return plan
            await asyncio.sleep(0.2)
        raise Refused(
            f"a worker keeps claiming partition {partition}: stop the workers, then run this again"
        )

    async def _marks(self, partition: int, mark: Watermark) -> tuple[str, ...]:
        """What stands before each position, so that a log that is cut again is told from this one.

        A worker says it only with what it folds next, which a quiet topic may let wait for days.
        """
        names = self.settings.kafka.sources
        marks = list(mark.marks or ("",) * len(names))
        for s, topic in enumerate(names):
            if not marks[s]:
                record = await self._reader.last(
                    TopicPartition(topic, partition), before=mark.positions[s]
                )
                marks[s] = record_mark(record) if record else ""
        return tuple(marks)

    async def _fence(self, partition: int, store: FeatureStore, token: str) -> Published | None:
        """What was published last, by writers that can publish no more."""
        publisher = Publisher(
            partition,
            self.settings,
            store,
            token,
            self._log_id,
            ("", ""),  # it publishes nothing
            self._reader,
            Pacer(1.0),
            Metrics(),
            lambda: None,
        )
        await publisher.start()
        try:
            return await publisher.last_published()
        finally:
            await publisher.stop()

    async def _found(
        self, partition: int, mark: Watermark | None, half: bool, said: Published | None
    ) -> Found:
        tps = [TopicPartition(t, partition) for t in self.settings.kafka.sources]
        scores = TopicPartition(self.settings.kafka.scores, partition)
        bounds = await self._reader.bounds([*tps, scores])
        other_records = [
            await self._rewritten(tp, bounds[tp], mark.marks[s] if mark and mark.marks else "")
            for s, tp in enumerate(tps)
        ]
        return Found(
            mark,
            half,
            said,
            tuple(bounds[tp] for tp in tps),
            bounds[scores],
            self._log_id,
            tuple(other_records),
        )

    async def _rewritten(self, tp: TopicPartition, held: Bounds, mark: str) -> bool:
        if cut_at(mark) is not None:
            return True
        compacted = tp.topic in self._compacted
        return await rewritten(self._reader, tp, mark, held, compacted=compacted)


async def recover(
    settings: Settings,
    action: Action,
    *,
    dry_run: bool,
    archive: Path | None = None,
    store: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Plan, and unless `dry_run` carry it out; -> the plan as `--json` holds it."""
    await asyncio.to_thread(topics.require, settings)
    there = await asyncio.to_thread(topics.sources_there, settings)
    ids = {name: found.id for name, found in there.items()}
    compacted = [name for name, found in there.items() if found.compacted]
    stores = Stores(settings)
    recovery = Recovery(settings, stores, log_id(settings, ids), compacted)
    try:
        if action == "rebuild":
            rows = await _rebuild(recovery, ids, dry_run, archive, store, progress)
        else:
            rows = await _in_place(recovery, action, dry_run)
        said = compaction.warning(compacted)
        warnings = [said] if said else []
        return {"action": action, "dry_run": dry_run, "plan": rows, "warnings": warnings}
    finally:
        await recovery.close()
        await stores.close()


async def _in_place(recovery: Recovery, action: Action, dry_run: bool) -> list[dict[str, Any]]:
    """adopt and wipe: first a look at all partitions, so that a refusal changes none."""
    settings = recovery.settings

    async def one(p: int, look: bool) -> dict[str, Any]:
        active = await recovery.active(p)
        generation = await recovery.generation(p) if action == "wipe" else ""
        if action == "adopt":
            # What is kept must be of these settings, or a worker would halt on it all the same.
            await recovery.check_settings(p, active)

        def make(found: Found) -> Plan:
            if action == "adopt":
                return adopt(settings, p, found)
            return wipe(settings, p, found, generation)

        if look:
            plan = make(await recovery.look(p, active))
        else:
            plan = await recovery.apply(p, active, make, wipes=action == "wipe")
        return plan.as_json(active.name)

    rows = [await one(p, True) for p in range(settings.kafka.partitions)]
    if dry_run:
        return rows
    # A producer is started for each, which takes its time.
    return await asyncio.gather(*(one(p, False) for p in range(settings.kafka.partitions)))


async def _rebuild(
    recovery: Recovery,
    ids: dict[str, str],
    dry_run: bool,
    archive: Path | None,
    name: str,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Fold archive and log into a store aside, then let it serve."""
    from livevalue.jobs.rebuilding import fold_again, made_again, needs

    settings, stores = recovery.settings, recovery.stores
    partitions = range(settings.kafka.partitions)
    serving = {await stores.store().active(p) for p in partitions} - {None}
    if name and name in serving:
        raise Refused(f"store {name!r} serves now: name another with --store")
    fresh = not name
    if fresh:
        own = settings.store.name
        spare = [f"{own}-rebuilt", f"{own}-rebuilt2"] if serving else [own]
        name = next(one for one in spare if one not in serving)
    again = frozenset[str]() if archive is None else made_again(archive, ids)
    into = stores.store(name)
    found = {p: await recovery.look(p, into) for p in partitions}
    rows = []
    for p in partitions:
        mark = None if fresh else found[p].watermark
        notes = needs(settings, p, found[p].bounds, archive, mark, again)
        serves = found[p] if name in serving else await recovery.look(p, await recovery.active(p))
        notes = serves.foreign + notes
        ends = tuple(b.end for b in found[p].bounds)
        plan = Plan(p, before=mark.positions if mark else None, notes=notes)
        rows.append({**plan.as_json(name), "changes": True, "to": list(ends)})
    if dry_run:
        return rows
    served = await stores.generation(await recovery.generation(0))
    if fresh:
        for p in partitions:
            await into.drop(p)
    await fold_again(settings, into, served, archive, again, progress)

    def make(p: int) -> Callable[[Found], Plan]:
        return lambda found: serve(settings, p, found, served.id)

    await asyncio.gather(*(recovery.apply(p, into, make(p), wipes=False) for p in partitions))
    return rows
