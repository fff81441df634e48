"""export: the values of all users in one file, one flat row a user, for warehouses and reverse ETL.

The live store is walked page by page (scan, then the documents), each document flattened, and the
rows kept in an unnamed file beside the target; when the values of all users are known, each row
gets its percentile and those asked for are written. Memory holds one number a user, and the ids of
one partition. The file appears whole, by a rename, or not at all.

A document is whole in itself; the walk is no snapshot: a user who comes while it runs may be
missing, one who is erased may be in it. Predictions carry 5 significant digits, times are UTC.
"""

from __future__ import annotations

import csv
import io
import os
import re
import tempfile
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, Protocol, Self

import numpy as np
import orjson
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from featurestore import times
from featurestore.backends.redis import RedisStore
from featurestore.columns import NO_TIME
from featurestore.store import FeatureStore, Meta
from livevalue.output import Refused
from scoring.documents import at
from streams.settings import Settings

Format = Literal["parquet", "csv", "jsonl"]
Row = dict[str, Any]
Opened = Callable[[str], FeatureStore]  # a store of the deployment by its name

_PAGE = 1000  # users a round trip: about 2 MB of documents
_HISTORY = {
    "orders": "count",
    "spent": "number",
    "spent_gross": "number",
    "refunds": "count",
    "refunded": "number",
    "first_event_at": "time",
    "last_event_at": "time",
    "last_order_at": "time",
}
_ARROW = {
    "text": pa.string(),
    "count": pa.int64(),
    "number": pa.float64(),
    "time": pa.timestamp("ms", tz="UTC"),
}
# Least percent of all users that are worth less, highest tier first.
_TIERS = ((99, "top1"), (90, "top10"), (75, "top25"), (50, "top50"))


@dataclass(frozen=True, slots=True)
class Segment:
    """Users by rank: at least `low` and less than `high` percent of all users are worth less."""

    low: Fraction
    high: Fraction

    @classmethod
    def parse(cls, text: str) -> Self:
        """`top10%`, `bottom20%`, or a span of percentiles such as `25-65%`.

        >>> Segment.parse("top2.5%") == Segment(Fraction("97.5"), Fraction(100))
        True
        >>> Segment.parse("25-65%") == Segment(Fraction(25), Fraction(65))
        True
        """
        number = r"(\d{1,3}(?:\.\d{1,6})?)"
        found = re.fullmatch(rf"(?:(top|bottom){number}|{number}-{number})%?", text.strip())
        if found:
            side, share, low, high = found.groups()
            if side == "top":
                span = cls(100 - Fraction(share), Fraction(100))
            elif side == "bottom":
                span = cls(Fraction(0), Fraction(share))
            else:
                span = cls(Fraction(low), Fraction(high))
            if 0 <= span.low < span.high <= 100:
                return span
        raise ValueError(f"{text!r} is no segment: write top10%, bottom20% or 25-65%")

    def holds(self, less: int, users: int) -> bool:
        """Is a user in it, given how many of all users are worth less? Exact: no float.

        >>> top = Segment.parse("top10%")
        >>> top.holds(9, 10), top.holds(8, 10)
        (True, False)
        """
        return self.low * users <= 100 * less and (
            self.high == 100 or 100 * less < self.high * users
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """Which users, and as of when. Percentiles are over all users, whoever is chosen."""

    changed_since_ms: int | None = None  # documents whose own `as_of` is not earlier
    min_value: float | None = None  # of the headline, as exported
    segment: Segment | None = None
    as_published: bool = False  # else brought to now by the silence curve


def tier(less: int, users: int) -> str:
    """The highest tier that a user is in.

    >>> tier(99, 100), tier(98, 100), tier(50, 100), tier(49, 100)
    ('top1', 'top10', 'top50', 'rest')
    """
    return next((name for least, name in _TIERS if least * users <= 100 * less), "rest")


async def export(
    settings: Settings,
    file: Path,
    form: Format,
    choice: Choice,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Write the live values into `file`; -> what `--json` holds."""
    store = RedisStore(settings.store)
    try:
        wall_ms = time.time_ns() // 1_000_000
        return await export_from(store, store.sibling, file, form, choice, wall_ms, progress)
    finally:
        await store.close()


async def export_from(
    store: FeatureStore,
    opened: Opened,
    file: Path,
    form: Format,
    choice: Choice,
    wall_ms: int,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """The same over any store; progress is told users so far, and in all as far as is known."""
    meta, stores = await live_stores(store, opened)
    now_ms = None if choice.as_published else await live_now(meta, stores, wall_ms)
    columns = _columns(meta.horizons, choice.as_published)
    worth = array("d")  # headline value of every user, chosen or not
    walked, before = 0, 0  # whole partitions, and the users in them
    try:
        with _beside(file) as kept:
            async for whole, documents in pages(stores):
                if whole > walked:
                    walked, before = whole, len(worth)
                for document in documents:
                    row = _row(document, meta.horizons, now_ms)
                    worth.append(row["value"])
                    if _chosen(row, choice):
                        kept.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
                if progress:
                    # Users spread evenly, so whole partitions tell how many are to come.
                    likely = before * len(stores) // walked if walked else 0
                    progress(len(worth), max(likely, len(worth)) if likely else None)
            kept.seek(0)
            with whole_file(file) as target:
                rows = _write(target, form, columns, _ranked(kept, worth, choice.segment))
    except OSError as error:
        raise Refused(f"cannot write {file} ({error.strerror}): name another file") from error
    return {
        "file": str(file),
        "format": form,
        "rows": rows,
        "users": len(worth),
        "as_of": None if now_ms is None else times.text(now_ms),
        "columns": list(columns),
    }


async def live_stores(store: FeatureStore, opened: Opened) -> tuple[Meta, dict[int, FeatureStore]]:
    """What readers know of the deployment, and the store that serves each partition."""
    meta = await store.meta()
    live = {p: await store.active(p) for p in range(meta.partitions)} if meta else {}
    if meta is None or not any(live.values()):
        raise Refused(
            "there are no values yet: start a worker (`livevalue run`), or check "
            "LIVEVALUE_STORE__URL"
        )
    return meta, {p: opened(name) for p, name in live.items() if name}


async def live_now(meta: Meta, stores: Mapping[int, FeatureStore], wall_ms: int) -> int:
    """Now as the deployment counts it: the wall's time, or the log's where history plays."""
    if meta.clock != "log":
        return wall_ms
    marks = [(await store.load(p, [])).watermark for p, store in stores.items()]
    latest = max((max(mark.clocks) for mark in marks if mark), default=NO_TIME)
    return wall_ms if latest == NO_TIME else latest


async def pages(
    stores: Mapping[int, FeatureStore],
) -> AsyncIterator[tuple[int, list[dict[str, Any]]]]:
    """Every user's document once, in pages, with the count of partitions walked before."""
    for walked, (partition, store) in enumerate(stores.items()):
        seen: set[str] = set()
        cursor = ""
        while True:
            found, cursor = await store.scan(partition, cursor, _PAGE)
            # A scan may name a user twice; a state may be there without a document (erased).
            users = [user for user in dict.fromkeys(found) if user not in seen]
            seen.update(users)
            for start in range(0, len(users), _PAGE):
                texts = await store.documents(partition, users[start : start + _PAGE])
                yield walked, [orjson.loads(text) for text in texts if text is not None]
            if not cursor:
                break


def _columns(horizons: Sequence[str], quantiles: bool) -> dict[str, str]:
    """Columns in their order, with what they hold."""
    return {
        "user_id": "text",
        "as_of": "time",
        "changed_at": "time",
        "headline": "text",
        "value": "number",
        "percentile": "number",
        "tier": "text",
        **{f"{name}_{what}": "number" for name in horizons for what in _predicted(quantiles)},
        **_HISTORY,
        "unit": "text",
        "evidence": "text",
        "generation": "text",
        "revision": "count",
        "cause": "text",
    }


def _predicted(quantiles: bool) -> tuple[str, ...]:
    """Of each horizon. Quantiles have no silence curve, so they come as published only."""
    return ("expected", "p_active", "p50", "p90") if quantiles else ("expected", "p_active")


def _row(document: Mapping[str, Any], horizons: Sequence[str], now_ms: int | None) -> Row:
    """One document flat, at a time or as published; its rank is set later."""
    shown = document if now_ms is None else at(document, now_ms)
    values, past = shown["values"], document["history"]
    return {
        "user_id": document["user_id"],
        "as_of": shown["as_of"],
        "changed_at": document["as_of"],
        "headline": document["headline"],
        "value": values[document["headline"]]["expected"],
        "percentile": None,
        "tier": None,
        **{
            f"{name}_{what}": values.get(name, {}).get(what)
            for name in horizons
            for what in _predicted(now_ms is None)
        },
        **{name: past[name] for name in _HISTORY},
        "unit": document["unit"]["code"],
        "evidence": document["evidence"],
        "generation": document["generation"],
        "revision": document["revision"],
        "cause": document["cause"]["type"],
    }


def _chosen(row: Row, choice: Choice) -> bool:
    """By what the row itself says; the segment needs all users first."""
    since, least = choice.changed_since_ms, choice.min_value
    return (since is None or times.parse(row["changed_at"]) >= since) and (
        least is None or row["value"] >= least
    )


def _ranked(lines: Iterable[bytes], worth: array[float], segment: Segment | None) -> Iterator[Row]:
    """Rows with percentile and tier. Users of equal value share the lower rank."""
    ascending = np.sort(np.frombuffer(worth, np.float64))
    users = len(worth)
    for line in lines:
        row = orjson.loads(line)
        less = int(np.searchsorted(ascending, row["value"], "left"))
        if segment is None or segment.holds(less, users):
            yield row | {"percentile": round(less / users, 6), "tier": tier(less, users)}


def _beside(file: Path) -> IO[bytes]:
    """An unnamed file on the target's disk: whether it can be written shows before the walk."""
    if file.is_dir():
        raise Refused(f"{file} is a folder: name a file in it")
    return tempfile.TemporaryFile(dir=file.parent)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that stands under its name when it is whole, and of which else nothing is left."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class _Writer(Protocol):
    def rows(self, rows: list[Row]) -> None: ...
    def end(self) -> None: ...


def _write(file: IO[bytes], form: Format, columns: Mapping[str, str], rows: Iterator[Row]) -> int:
    """All rows in the format asked for; -> how many."""
    writer = _WRITERS[form](file, columns)
    written = 0
    try:
        while page := list(islice(rows, 50 * _PAGE if form == "parquet" else _PAGE)):
            writer.rows(page)
            written += len(page)
    finally:
        writer.end()
    return written


class _Parquet:
    """Times as timestamps, a page a row group."""

    def __init__(self, file: IO[bytes], columns: Mapping[str, str]) -> None:
        self._columns = columns
        self._schema = pa.schema([(name, _ARROW[kind]) for name, kind in columns.items()])
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")

    def rows(self, rows: list[Row]) -> None:
        arrays = []
        for name, kind in self._columns.items():
            cells = [row[name] for row in rows]
            if kind == "time":
                cells = [None if text is None else times.parse(text) for text in cells]
            arrays.append(pa.array(cells, _ARROW[kind]))
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def end(self) -> None:
        self._writer.close()


class _Csv:
    """With a heading; what is not known is empty. UTF-8."""

    def __init__(self, file: IO[bytes], columns: Mapping[str, str]) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._text, columns, lineterminator="\n")
        self._writer.writeheader()

    def rows(self, rows: list[Row]) -> None:
        self._writer.writerows(rows)

    def end(self) -> None:
        self._text.detach()


class _Jsonl:
    """One object a line, all columns in each."""

    def __init__(self, file: IO[bytes], columns: Mapping[str, str]) -> None:
        self._file = file

    def rows(self, rows: list[Row]) -> None:
        self._file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)

    def end(self) -> None:
        """Nothing stands open."""


_WRITERS: dict[Format, Callable[[IO[bytes], Mapping[str, str]], _Writer]] = {
    "parquet": _Parquet,
    "csv": _Csv,
    "jsonl": _Jsonl,
}
