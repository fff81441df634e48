"""Snapshots of what was served: what a reader would have been told of every user, once a day.

The live store is walked as `export` walks it, and each document brought to one moment by its
silence curve. `ARCHIVE/served/2011-09-10.parquet` is the snapshot of that day in the deployment's
clock: one row a user with the as-of of the document, its generation and evidence, net spend until
then, and of each horizon `d90_expected`, `_p_active` (by the curve) and `_p10`, `_p50`, `_p90` of
"if active" (as published: quantiles have no curve). The first snapshot of a day stays; a file is
there whole or not at all. Users in pages, one row group each: memory holds a page.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from featurestore import times
from featurestore.backends.redis import RedisStore
from featurestore.errors import FeatureStoreError
from featurestore.store import FeatureStore
from livevalue.jobs.exporting import Opened, live_now, live_stores, pages, whole_file
from livevalue.output import Refused
from scoring.documents import at
from scoring.retraining.audit import Predicted, Served
from streams.settings import Settings

SERVED = "served"  # folder in the archive
QUANTILES = ("p10", "p50", "p90")
MOMENT = b"snapshot_ms"
_HORIZON = re.compile(r"d(\d+)_expected")


async def take(
    settings: Settings, folder: Path, progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """The snapshot of today into the archive `folder`; -> what was written, or what was there."""
    store = RedisStore(settings.store)
    try:
        wall_ms = time.time_ns() // 1_000_000
        return await take_from(store, store.sibling, folder, wall_ms, progress)
    finally:
        await store.close()


async def take_daily(settings: Settings, folder: Path) -> tuple[dict[str, Any], str]:
    """The same for an archiver, whose log matters more: nothing is raised.

    -> (`{"snapshot": FILE}` if one was taken now, else nothing; why none could be taken).
    """
    try:
        facts = await take(settings, folder)
    except (Refused, FeatureStoreError) as error:
        return {}, str(error)
    return ({"snapshot": facts["file"]} if facts["taken"] else {}), ""


async def take_from(
    store: FeatureStore,
    opened: Opened,
    folder: Path,
    wall_ms: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """The same over any store."""
    meta, stores = await live_stores(store, opened)
    now_ms = await live_now(meta, stores, wall_ms)
    file = folder / SERVED / f"{times.text(now_ms)[:10]}.parquet"
    facts = {"snapshot": times.text(now_ms), "file": str(file)}
    if file.exists():
        return {**facts, "snapshot": times.text(moment_of(file)), "users": None, "taken": False}

    async def rows() -> AsyncIterator[list[dict[str, Any]]]:
        async for _, documents in pages(stores):
            yield [row_of(document, meta.horizons, now_ms) for document in documents]

    users = await write(file, schema_of(meta.horizons), now_ms, rows(), progress)
    return {**facts, "users": users, "taken": True}


async def write(
    file: Path,
    schema: pa.Schema,
    now_ms: int,
    rows: AsyncIterator[list[dict[str, Any]]],
    progress: Callable[[int], None] | None = None,
) -> int:
    """Pages of rows into `file`, whole or not at all; -> how many users."""
    schema = schema.with_metadata({MOMENT: str(now_ms)})
    users = 0
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with (
            whole_file(file) as target,
            pq.ParquetWriter(target, schema, compression="zstd") as writer,
        ):
            async for page in rows:
                if page:
                    writer.write_table(pa.Table.from_pylist(page, schema=schema))
                users += len(page)
                if progress:
                    progress(users)
    except OSError as error:
        raise Refused(
            f"cannot write {file} ({error.strerror}): name another folder with --archive"
        ) from error
    return users


def schema_of(horizons: Sequence[str]) -> pa.Schema:
    """Columns of a snapshot."""
    columns = [("user_id", pa.string()), ("as_of", pa.int64()), ("spent", pa.float64())]
    columns += [("generation", pa.string()), ("evidence", pa.string())]
    names = ("expected", "p_active", *QUANTILES)
    columns += [(f"{horizon}_{name}", pa.float64()) for horizon in horizons for name in names]
    return pa.schema(columns)


def row_of(document: Mapping[str, Any], horizons: Sequence[str], now_ms: int) -> dict[str, Any]:
    """One user: the value at the moment, the rest as the document says."""
    shown, published = at(document, now_ms)["values"], document["values"]
    row = {
        "user_id": document["user_id"],
        "as_of": times.parse(document["as_of"]),
        "spent": document["history"]["spent"],
        "generation": document["generation"],
        "evidence": document["evidence"],
    }
    for horizon in horizons:
        if horizon not in published:
            continue  # of a generation before the horizons were changed: empty cells
        row[f"{horizon}_expected"] = shown[horizon]["expected"]
        row[f"{horizon}_p_active"] = shown[horizon]["p_active"]
        for name in QUANTILES:
            row[f"{horizon}_{name}"] = published[horizon]["if_active"][name]
    return row


def listed(folder: Path) -> list[Path]:
    """Snapshots of an archive, oldest first."""
    return sorted((folder / SERVED).glob("[0-9]*-[0-9]*-[0-9]*.parquet"))


def moment_of(file: Path) -> int:
    """The moment that a snapshot speaks of, in milliseconds."""
    metadata = _opened(file).schema_arrow.metadata or {}
    if MOMENT not in metadata:
        raise Refused(f"{file} is no snapshot of `livevalue audit --snapshot`: take it away")
    return int(metadata[MOMENT])


def horizons_of(file: Path) -> list[int]:
    """Days of the horizons that a snapshot holds, ascending."""
    found = (_HORIZON.fullmatch(name) for name in _opened(file).schema_arrow.names)
    return sorted(int(match[1]) for match in found if match)


def read(file: Path, whose: str = "") -> Served:
    """One snapshot as columns; `whose` is the prefix of another generation's in the same file."""
    snapshot_ms, days = moment_of(file), horizons_of(file)
    table = _opened(file).read()
    return Served(
        snapshot_ms=snapshot_ms,
        users=table.column("user_id").to_pylist(),
        as_of_ms=table.column(f"{whose}as_of").to_numpy(),
        spent=table.column("spent").to_numpy(),
        generation=np.array(table.column(f"{whose}generation").to_pylist(), object),
        evidence=np.array(table.column("evidence").to_pylist(), object),
        horizons={
            n: Predicted(
                *(
                    table.column(f"{whose}d{n}_{name}").to_numpy()
                    for name in ("expected", "p_active", "p10", "p90")
                )
            )
            for n in days
        },
    )


def _opened(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise Refused(f"{file} cannot be read ({error}): take it away, or restore it") from error
