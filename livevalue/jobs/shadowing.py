"""shadow: another generation beside the champion, fed from the same log, read by nobody.

One round folds what the log holds up to where the store that serves stands into a store aside, as
`promote` does before it flips, and once a day keeps a pair: what readers are told of every user
at this moment, and what the shadow would say. `ARCHIVE/shadow/DAY-GENERATION.parquet` is a snapshot
(livevalue.jobs.snapshots) with the shadow's columns beside the champion's, prefixed `shadow_`.

The store aside publishes nothing and writes no document; its worth is asked of its states, at the
moment itself. `livevalue audit` compares the pairs as their labels mature; `promote` of a shadow is
a flip at once, since its store is nearly level already.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from featurestore import times
from featurestore.state import States, history
from featurestore.store import FeatureStore
from livevalue.jobs import snapshots
from livevalue.jobs.exporting import live_now, live_stores, pages
from livevalue.jobs.generating import build_aside, fits, store_name
from livevalue.output import Refused
from livevalue.sources import FileOptions
from scoring.generation import Generation
from scoring.retraining.shadow import Pair
from scoring.scorer import Scorer
from streams.replay import Progress
from streams.row import split
from streams.settings import Settings
from streams.stores import Stores

SHADOW = "shadow"  # folder in the archive
PREFIX = "shadow_"  # of its columns
Row = dict[str, Any]


async def shadow(
    settings: Settings,
    name: str,
    folder: Path,
    base: Sequence[str],
    options: FileOptions,
    told: Callable[[str], None],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """One round: the store aside up to where the one that serves stands, and today's pair.

    base: the files that the active store was built from first, where it was.
    """
    stores = Stores(settings)
    try:
        registry = stores.registry()
        made = await registry.get(name)
        fits(made, settings)
        # Asked first: the pipeline of a deployment without one would publish a generation.
        meta, live = await live_stores(stores.store(), stores.store)
        other = stores.store(store_name(made.id))
        marks = [(await store.load(p, [])).watermark for p, store in live.items()]
        if any(mark and mark.generation == made.id for mark in marks):
            raise Refused(
                f"generation {made.short} serves already: shadow another one of "
                "`livevalue generations ls`"
            )
        active = (await stores.pipeline_for(0)).store
        await build_aside(settings, active, other, made, base, options, told, progress)
        now_ms = await live_now(meta, live, time.time_ns() // 1_000_000)
        file = folder / SHADOW / f"{times.text(now_ms)[:10]}-{made.short}.parquet"
        facts = {"generation": made.id, "store": other.name, "file": str(file)}
        if file.exists():
            moment = times.text(snapshots.moment_of(file))
            return {**facts, "snapshot": moment, "users": None, "taken": False}
        asked = _Asked(made, settings, now_ms)
        rows = _rows(live, other, asked, meta.horizons, now_ms)
        users = await snapshots.write(file, _schema(meta.horizons), now_ms, rows)
        return {**facts, "snapshot": times.text(now_ms), "users": users, "taken": True}
    finally:
        await stores.close()


class _Asked:
    """A generation, asked of states at one moment."""

    def __init__(self, made: Generation, settings: Settings, now_ms: int) -> None:
        self._now_ms = now_ms
        self._kept = Scorer(made, settings.model, settings.features)
        # Of the moment alone: no knots of silence.
        now = settings.model.model_copy(update={"silence_days": (0.0,)})
        self._scorer = Scorer(made, now, settings.features)
        self.generation = made

    def __call__(self, users: Sequence[str], blobs: Sequence[bytes | None]) -> dict[str, Row]:
        """user -> the shadow's columns; users whom its store does not know are left out."""
        held = [(user, split(blob)) for user, blob in zip(users, blobs, strict=True) if blob]
        states = States.decode([user for user, _ in held], [parts[0] for _, parts in held])
        at = np.flatnonzero(states.known())
        if not len(at):
            return {}
        _, head, _ = self._kept.unpack([held[i][1][1] for i in at.tolist()])
        states = states.select(at)
        last_ms = history(states)["last_ms"]
        said = self._scorer.rescore(states, head, np.maximum(last_ms, self._now_ms))
        horizons_s = self.generation.model.horizons_s
        days = [f"{PREFIX}d{seconds // 86_400}" for seconds in horizons_s]
        out: dict[str, Row] = {}
        for i, user in enumerate(states.users):
            row: Row = {f"{PREFIX}as_of": int(last_ms[i])}
            row[f"{PREFIX}generation"] = self.generation.short
            for h, horizon in enumerate(days):
                row[f"{horizon}_expected"] = float(said.expected[i, 0, h])
                row[f"{horizon}_p_active"] = float(said.p_active[i, 0, h])
                for q, quantile in enumerate(snapshots.QUANTILES):
                    row[f"{horizon}_{quantile}"] = float(said.if_active[i, h, q])
            out[user] = row
        return out


async def _rows(
    live: Mapping[int, FeatureStore],
    other: FeatureStore,
    asked: _Asked,
    horizons: Sequence[str],
    now_ms: int,
) -> AsyncIterator[list[Row]]:
    """Users of whom both say something."""
    for partition, store in live.items():
        async for _, documents in pages({partition: store}):
            users = [document["user_id"] for document in documents]
            said = asked(users, (await other.load(partition, users)).states)
            yield [
                {**snapshots.row_of(document, horizons, now_ms), **said[document["user_id"]]}
                for document in documents
                if document["user_id"] in said
            ]


def _schema(horizons: Sequence[str]) -> pa.Schema:
    one = snapshots.schema_of(horizons)
    shared = ("user_id", "spent", "evidence")
    again = [pa.field(f"{PREFIX}{f.name}", f.type) for f in one if f.name not in shared]
    return pa.schema([*one, *again])


def listed(folder: Path) -> list[Path]:
    """Pairs of an archive, oldest first."""
    return sorted((folder / SHADOW).glob("[0-9]*-[0-9]*-[0-9]*-*.parquet"))


def read(file: Path) -> Pair:
    """One pair as columns."""
    return Pair(snapshots.read(file), snapshots.read(file, PREFIX))
