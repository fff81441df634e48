"""retrain, promote, rollback: the next generation, and how it comes to serve."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from featurestore.store import FeatureStore
from livevalue.caveats import caveats
from livevalue.jobs.storing import build, flip
from livevalue.output import Refused
from livevalue.rejections import readings
from livevalue.sources import KAFKA, FileOptions, Source
from scoring import cost
from scoring.errors import GenerationError, RegistryError, RegistryUnavailable
from scoring.generation import Generation, unservable
from scoring.inputs import readable
from scoring.registry import Registry
from scoring.retraining import retrain as job
from scoring.training.trainable import accepted
from streams.errors import Stale
from streams.pipeline import Base
from streams.replay import Progress, Replayed
from streams.settings import Settings
from streams.stores import Stores


def store_name(generation: str) -> str:
    """Name of the store that is built for a generation.

    >>> store_name("3f9c0a1b22cd")
    'g-3f9c0a1b22cd'
    """
    return f"g-{generation[:12]}"


async def list_generations(settings: Settings) -> dict[str, Any]:
    """What the registry holds, oldest first."""
    stores = Stores(settings)
    try:
        return {
            "generations": [
                {
                    "id": entry.id,
                    "champion": entry.champion,
                    **(
                        entry.manifest.model_dump(mode="json", include=_SHOWN)
                        if entry.manifest is not None
                        else {**dict.fromkeys(_SHOWN), "damaged": entry.damaged}
                    ),
                }
                for entry in await stores.registry().ls()
            ]
        }
    finally:
        await stores.close()


_SHOWN = {"family", "trained_until_ms", "seen_types", "unit", "metrics"}


async def show_generation(settings: Settings, name: str) -> dict[str, Any]:
    """The manifest of one generation, and what it costs here."""
    stores = Stores(settings)
    try:
        found = await stores.registry().get(name)
        spent = cost.measure(found, settings.model).as_json()
        return {"id": found.id, **found.manifest.model_dump(mode="json"), "cost": spent}
    finally:
        await stores.close()


async def promote(
    settings: Settings,
    name: str,
    base: Sequence[str],
    options: FileOptions,
    told: Callable[[str], None],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build a store with this generation aside, let it catch up, flip, and let workers sweep.

    base: the files that the active store was built from first, where it was.
    """
    stores = Stores(settings)
    try:
        registry = stores.registry()
        full = await registry.resolve(name)
        made = await registry.get(full)
        fits(made, settings)
        # By its name: what serves may be the very generation whose files are damaged.
        active = stores.store(await stores.store().active(0) or "")
        other = stores.store(store_name(full))
        if active.name != other.name:
            await build_aside(settings, active, other, made, base, options, told, progress)
        await flip(settings, other.name, told)
        before = await registry.promote(full)
        return {"generation": full, "before": before, "store": other.name}
    finally:
        await stores.close()


def fits(made: Generation, settings: Settings) -> None:
    """GenerationError where a generation cannot serve this deployment; the champion stays."""
    horizons_s = [days * 86_400 for days in settings.model.horizons_days]
    folded = readable(settings.features)
    cannot = unservable(made.manifest, horizons_s, settings.value.currency, folded)
    if cannot:
        raise GenerationError(
            f"generation {made.short} cannot serve here: {cannot}; retrain with these settings, or"
            " name another of `livevalue generations ls`"
        )


async def build_aside(
    settings: Settings,
    active: FeatureStore,
    other: FeatureStore,
    made: Generation,
    base: Sequence[str],
    options: FileOptions,
    told: Callable[[str], None],
    progress: Progress | None,
) -> None:
    """Fold what the active store has folded into the other one; resumes what was begun."""
    mark = (await active.load(0, [])).watermark
    has_base = mark is not None and bool(mark.base)
    if has_base and not base:
        raise Stale(
            f"store {active.name!r} has a base of files: name them with --base, so that the new "
            "store is folded from them too"
        )
    limits = [(await active.load(p, [])).watermark for p in range(settings.kafka.partitions)]
    told(f"building store {other.name} aside")
    for warning in await asyncio.to_thread(caveats, settings):
        told(f"! {warning}")
    if has_base and mark is not None:
        cut_ms = Base.parse(mark.base).cut_ms
        await build(settings, other, made, Source(base, settings, options), cut_ms=cut_ms)
    ends = {p: w.positions for p, w in enumerate(limits) if w is not None}
    log = Source([KAFKA], settings)
    await build(settings, other, made, log, limits=ends, progress=progress)


async def rollback(settings: Settings, told: Callable[[str], None]) -> dict[str, Any]:
    """Back to the champion before; its store is still there, so this is one flip."""
    stores = Stores(settings)
    try:
        registry = stores.registry()
        before = await registry.champion()
        generation = await registry.rollback()
        known = {info.name: info for info in await stores.store().stores()}
        name = next((n for n, info in known.items() if info.generation == generation), None)
        if name is None:
            if before is not None:
                await registry.promote(before)
            raise Stale(
                f"no store holds generation {generation[:12]} any more: "
                f"`livevalue promote {generation[:12]}` builds it again"
            )
        await flip(settings, name, told)
        return {"generation": generation, "before": before, "store": name}
    finally:
        await stores.close()


async def retrain(
    settings: Settings,
    src: Sequence[str],
    options: FileOptions,
    told: Callable[[str], None],
    *,
    serve: bool = True,
    base: Sequence[str] = (),
    drifted_beyond: float | None = None,
    family: str = "",
    progress: Callable[[str, int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Train, calibrate, compare with the champion, publish; idempotent.

    drifted_beyond: train only where the stability index of the live users is above it, or where
    it cannot be told. The answer then holds `drifted` and `psi`.

    family: trained instead of the one of the settings.

    With `serve`, a generation that the gate lets pass is promoted: where a store serves already,
    another is built aside with it and flipped to; base as in `promote`.
    """
    training = settings.training
    if family:
        training = training.model_copy(update={"family": family})
    accepted(training)  # else refused before anything is asked for
    stores = Stores(settings)
    try:
        registry = stores.registry()
        source = Source(src, settings, options)
        moved: dict[str, Any] = {}
        if drifted_beyond is not None:
            found = await _drift(settings, drifted_beyond)
            moved = {"psi": found["psi"], "drifted": found["drifted"]}
            if found["drifted"] is False:
                return _unmoved(found, drifted_beyond, source, moved)
            told(f"drift: {found['reason'] or found['psi']}")
        if serve:
            await _loadable(registry)
        report = await job.retrain(
            readings(source),
            settings.model,
            settings.features,
            settings.kafka.sources,
            registry,
            settings=settings.retrain,
            training=training,
            unit=settings.value.currency,
            promote=False,
            progress=progress,
        )
        facts = _facts(report, source, moved)
        if serve and report.passed and await registry.champion() != report.generation:
            if await stores.store().active(0) is None:
                await registry.promote(report.generation)
            else:
                await promote(settings, report.generation, base, options, told)
            facts["promoted"] = True
        return facts
    finally:
        await stores.close()


async def _loadable(registry: Registry) -> None:
    """Refused where the champion's files are damaged or of another version.

    There is nothing then that a candidate could be held against, so none takes its place unasked.
    """
    champion = await registry.champion()
    if champion is None:
        return
    try:
        await registry.get(champion)
    except RegistryUnavailable:
        raise  # that may pass
    except (RegistryError, GenerationError) as error:
        raise Refused(
            f"the champion {champion[:12]} cannot be loaded, so it stays and nothing is compared"
            f" with it ({error}). `livevalue promote G` lets another serve; `livevalue retrain"
            " --publish-only` makes one"
        ) from error


async def _drift(settings: Settings, beyond: float) -> dict[str, Any]:
    """As `livevalue audit --drift` tells it; where nothing is served yet, nothing can be told."""
    from livevalue.jobs import auditing  # loads Parquet's reader, which nothing else here needs

    try:
        return await auditing.drift(settings, beyond)
    except Refused as error:
        return {"psi": None, "drifted": None, "reason": str(error)}


def _unmoved(
    found: dict[str, Any], beyond: float, source: Source, moved: dict[str, Any]
) -> dict[str, Any]:
    """What a retrain says that had no reason to train."""
    reason = f"not retrained: the users have not drifted (PSI {found['psi']:.3f}, {beyond} is much)"
    report = job.RetrainReport(
        found["generation"], {}, promoted=False, reason=reason, trained=False
    )
    return _facts(report, source, moved)


def _facts(report: job.RetrainReport, source: Source, moved: dict[str, Any]) -> dict[str, Any]:
    """What a retrain says; of what was folded the counts of a replay, by the same names."""
    facts = report.as_json()
    outcomes = facts.pop("outcomes")
    counts = Counter(outcomes) + source.rejected
    folded = Replayed(counts.total(), counts).as_json() if outcomes else {}
    return {**facts, **folded, **source.rejections(counts), **moved}
