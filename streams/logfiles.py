"""Rows of event-log files as they stand: JSONL, CSV, Parquet; .gz and .zst are read as they are.

Nothing is interpreted here beyond the format. JSONL gives raw lines, CSV and Parquet give cells by
column name. JSONL and CSV stream line by line, Parquet by batches of 8,192 rows, so memory does
not grow with the file.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from streams.errors import LogFileError

Row = Mapping[str, Any]

_COMPRESSED = (".gz", ".zst")
_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_BATCH = 8192
_WIDEST = 1 << 24  # of a CSV cell; longer ones end in an error, not in all of memory


def format_of(path: Path) -> str:
    """`jsonl`, `csv` or `parquet`, by the file's name.

    >>> format_of(Path("orders.csv.gz"))
    'csv'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    found = _FORMATS.get(suffixes[-1]) if suffixes else None
    if found is None:
        raise LogFileError(
            f"{path}: unknown kind of file: name it .jsonl, .csv or .parquet (then .gz or .zst)"
        )
    return found


def lines(path: Path, limit: int) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of a JSONL file, blank lines left out.

    A line above `limit` bytes is cut somewhere behind it. A byte-order mark is no part of a line.
    """
    try:
        with _opened(path) as file:
            for number in itertools.count(1):
                line = file.readline(limit + 2)
                if not line:
                    return
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not line.endswith(b"\n") and len(line) > limit:
                    while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                        pass
                if line := line.strip():
                    yield number, line
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise LogFileError(f"{path}: {error}") from error


def table(path: Path, wanted: Iterable[str], needed: Iterable[str]) -> Iterator[Row]:
    """Rows of a CSV or Parquet file; of the `wanted` columns only those that it has.

    LogFileError where a `needed` column is missing.
    """
    try:
        if format_of(path) == "csv":
            yield from _csv(path, set(needed))
        else:
            yield from _parquet(path, set(wanted), set(needed))
    except (OSError, EOFError, csv.Error, zstandard.ZstdError) as error:
        raise LogFileError(f"{path}: {error}") from error


def _csv(path: Path, needed: set[str]) -> Iterator[Row]:
    # Excel writes a BOM. Bytes that are no UTF-8 stay recognisable: their row is rejected later.
    text = io.TextIOWrapper(_opened(path), "utf-8-sig", errors="surrogateescape", newline="")
    with text:
        before = csv.field_size_limit(_WIDEST)
        try:
            reader = csv.DictReader(text)
            _check(path, needed, reader.fieldnames or ())
            yield from reader
        finally:
            csv.field_size_limit(before)


def _parquet(path: Path, wanted: set[str], needed: set[str]) -> Iterator[Row]:
    # Here, since a worker that reads no Parquet should not pay its half second and memory.
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check(path, needed, names)
            columns = [name for name in names if name in wanted]
            for batch in file.iter_batches(_BATCH, columns=columns):
                yield from _without_datetimes(batch).to_pylist()
    except pa.ArrowException as error:
        raise LogFileError(f"{path}: {error}") from error


def _without_datetimes(batch: Any) -> Any:
    """Timestamps as integer milliseconds (UTC if they have no zone), cut towards the past."""
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    for at, kind in enumerate(batch.schema.types):
        if pa.types.is_timestamp(kind):
            moments = pc.floor_temporal(batch.column(at), unit="millisecond")
            whole = moments.cast(pa.timestamp("ms", kind.tz)).cast(pa.int64())
            batch = batch.set_column(at, batch.schema.names[at], whole)
    return batch


def _check(path: Path, needed: set[str], names: Iterable[str]) -> None:
    if missing := sorted(needed - set(names)):
        raise LogFileError(
            f"{path}: no column {', '.join(missing)}; it has {', '.join(names) or 'none'}: "
            "map yours with --columns, for example user_id=CustomerID"
        )


def _opened(path: Path) -> BinaryIO:
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path, "rb")  # type: ignore[return-value]
        case ".zst":
            raw = zstandard.ZstdDecompressor().stream_reader(
                path.open("rb"), read_across_frames=True, closefd=True
            )
            return io.BufferedReader(raw)
        case _:
            return path.open("rb")
