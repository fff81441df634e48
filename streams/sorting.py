"""Sort more rows than fit in memory: sorted runs in a temporary folder, merged when read.

Rows are tuples of what msgpack can hold; they are compared as tuples, so whatever makes the order
stands first. Within `memory` bytes everything stays in memory and nothing touches the disk.
n rows cost O(n log n) time, O(n) disk and one open file a run.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

Row = tuple[Any, ...]

MEMORY = 128 << 20
_ROW = 400  # bytes that Python takes for a row beside its strings, measured on tuples of eight
_BUFFER = 1 << 18


def external_sort(rows: Iterable[Row], memory: int = MEMORY) -> Iterator[Row]:
    """`rows` in order, holding about `memory` bytes of them at a time.

    >>> list(external_sort([(2, b"b"), (1, b"a"), (3, b"c")], memory=1))
    [(1, b'a'), (2, b'b'), (3, b'c')]
    """
    held: list[Row] = []
    size = 0
    runs: list[Path] = []
    with tempfile.TemporaryDirectory(prefix="livevalue-sort-") as folder:
        for row in rows:
            held.append(row)
            size += _ROW + sum(len(cell) for cell in row if isinstance(cell, bytes | str))
            if size >= memory:
                held.sort()
                runs.append(_spill(held, Path(folder) / str(len(runs))))
                held, size = [], 0
        held.sort()
        if runs:
            yield from heapq.merge(held, *map(_read, runs))
        else:
            yield from held


def _spill(rows: list[Row], path: Path) -> Path:
    encode = msgspec.msgpack.Encoder().encode
    with path.open("wb", _BUFFER) as file:
        for row in rows:
            packed = encode(row)
            file.write(len(packed).to_bytes(4, "little") + packed)
    return path


def _read(path: Path) -> Iterator[Row]:
    decode = msgspec.msgpack.Decoder(Row).decode
    with path.open("rb", _BUFFER) as file:
        while size := file.read(4):
            yield decode(file.read(int.from_bytes(size, "little")))
