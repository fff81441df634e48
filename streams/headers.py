"""Records whose header names are no UTF-8: read, not a poison pill.

A broker takes any bytes as the name of a header, and librdkafka sends any. aiokafka 0.14.0 decodes
names strictly while it iterates over a batch: one such record ends Faust's fetcher, and again after
each restart, so that its partition stands still for ever. `install` puts `Records` in the place of
what aiokafka's fetcher reads batches with. A batch is read as before, by the compiled reader; only
where that stumbles over a name it is read once more, in Python, with U+FFFD for what is no UTF-8.
Source: record batches of version 2, KIP-98; the name of a header is a string by KIP-82.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import unpack_from
from typing import Any, SupportsIndex, overload

from aiokafka.consumer import fetcher  # type: ignore[import-untyped]
from aiokafka.record.default_records import _DefaultRecordBatchPy  # type: ignore[import-untyped]
from aiokafka.record.memory_records import MemoryRecords  # type: ignore[import-untyped]

_LENGTH_AT, _OVERHEAD, _MAGIC_AT = 8, 12, 16  # of a batch: see Source


class Records:
    """The batches of one fetch of one partition."""

    def __init__(self, data: bytes) -> None:
        self._records = MemoryRecords(data)
        self._data = memoryview(data)
        self._at = 0

    def size_in_bytes(self) -> int:
        return int(self._records.size_in_bytes())

    def has_next(self) -> bool:
        return bool(self._records.has_next())

    def next_batch(self) -> Any:
        """The next batch, as the compiled reader gives it, with another way to its records."""
        batch = self._records.next_batch()
        begin = self._at
        (length,) = unpack_from(">i", self._data, begin + _LENGTH_AT)
        self._at = begin + _OVERHEAD + length
        if self._data[begin + _MAGIC_AT] < 2:
            return batch  # of a time before headers
        return _Batch(batch, self._data[begin : self._at])


class _Batch:
    """One batch; everything but its records is the compiled reader's."""

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch = batch
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)  # of a control batch, which has no headers

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(list(self._batch))
        except UnicodeDecodeError:
            slow: Any = _DefaultRecordBatchPy(self._data)
            slow._maybe_uncompress()
            slow._buffer = _Text(slow._buffer)
            return iter(list(slow))


class _Text(bytearray):
    """Bytes of which each slice decodes, whatever it holds.

    >>> len(_Text(bytes([97, 255, 98]))[:].decode("utf-8"))
    3
    """

    @overload
    def __getitem__(self, at: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> _Text: ...
    def __getitem__(self, at: SupportsIndex | slice) -> int | _Text:
        found = super().__getitem__(at)
        return found if isinstance(found, int) else _Text(found)

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        return super().decode(encoding, errors)


def install() -> None:
    """Let every aiokafka consumer of this process read so."""
    fetcher.MemoryRecords = Records  # a name that its loop looks up each time
