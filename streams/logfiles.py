"""Rows of event-log files as they stand: JSONL, CSV, Parquet; .gz and .zst are read as they are.

Nothing is interpreted here beyond the format. JSONL gives raw lines, CSV and Parquet give cells by
column name. JSONL and CSV stream line by line, Parquet by batches of 8,192 rows, so memory does
not grow with the file.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
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


def lines(path: Path, limit: int) -> Iterator[bytes]:
    """Lines of a JSONL file without their ends; one above `limit` bytes is cut behind it."""
    try:
        with _opened(path) as file:
            while line := file.readline(limit + 2):
                if not line.endswith(b"\n") and len(line) > limit:
                    while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                        pass
                    yield line
                else:
                    yield line.rstrip(b"\r\n")
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
    except (OSError, EOFError, csv.Error, pa.ArrowException, zstandard.ZstdError) as error:
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
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        _check(path, needed, names)
        columns = [name for name in names if name in wanted]
        for batch in file.iter_batches(_BATCH, columns=columns):
            yield from batch.to_pylist()


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
