"""Header names that are no UTF-8, in batches of every compression, through the fetcher's reader."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from aiokafka.consumer import fetcher  # type: ignore[import-untyped]
from aiokafka.record.default_records import (  # type: ignore[import-untyped]
    DefaultRecordBatch,
    DefaultRecordBatchBuilder,
)
from aiokafka.record.memory_records import MemoryRecords  # type: ignore[import-untyped]
from aiokafka.record.util import calc_crc32c  # type: ignore[import-untyped]

from streams import headers

_CRC_AT, _BODY_AT = 17, 21  # of a batch of version 2: where its checksum stands, what it is of


class Misnamed:
    """A builder of batches whose header `@@` has a name that is no UTF-8."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def build(self) -> bytes:
        made = bytearray(bytes(self._builder.build()).replace(b"@@", b"\xff\xfe"))
        made[_CRC_AT:_BODY_AT] = struct.pack(">I", calc_crc32c(bytes(made[_BODY_AT:])))
        return bytes(made)


def batch(first: int, *names: str, compression: int = 0, misnamed: bool = False) -> bytes:
    made = DefaultRecordBatchBuilder(2, compression, 0, -1, -1, 0, 1 << 20)
    for at, name in enumerate(names):
        made.append(at, at, b"k%d" % at, b"v" * at, [(name, None), (name, b"x")] if name else [])
    built = bytearray((Misnamed(made) if misnamed else made).build())
    built[:8] = struct.pack(">q", first)  # as the broker does: no part of the checksum
    return bytes(built)


def read(data: bytes, reader: Any) -> list[Any]:
    found: list[Any] = []
    records = reader(data)
    while records.has_next():
        one = records.next_batch()
        assert one.validate_crc()
        found += [
            (one.base_offset, r.offset, r.timestamp, r.key, r.value, list(r.headers)) for r in one
        ]
        found.append((one.next_offset, one.is_control_batch, one.producer_id))
    return found


def test_every_consumer_of_the_process_reads_so() -> None:
    from streams import connection  # noqa: F401  whoever gets a consumer's options has it

    assert fetcher.MemoryRecords is headers.Records


@pytest.mark.parametrize("compression", [0, DefaultRecordBatch.CODEC_GZIP])
def test_ordinary_batches_are_read_as_before(compression: int) -> None:
    data = batch(0, "", "a", "é", compression=compression) + batch(3, "b") + batch(4, "", "")
    cut = data + batch(6, "half")[:-5]  # a fetch may end within a batch
    for fetched in (data, cut, b""):
        assert read(fetched, headers.Records) == read(fetched, MemoryRecords)
        sizes = [x(fetched).size_in_bytes() for x in (headers.Records, MemoryRecords)]
        assert sizes[0] == sizes[1]


def test_a_name_that_is_no_utf_8_spoils_neither_its_record_nor_the_others() -> None:
    data = batch(0, "a") + batch(1, "", "@@", "b", misnamed=True) + batch(4, "c")
    with pytest.raises(UnicodeDecodeError):
        read(data, MemoryRecords)
    rows = [row for row in read(data, headers.Records) if len(row) == 6]
    assert [row[1] for row in rows] == [0, 1, 2, 3, 4]
    assert [row[4] for row in rows] == [b"", b"", b"v", b"vv", b""]
    assert rows[2][5] == [("\ufffd\ufffd", None), ("\ufffd\ufffd", b"x")]
    assert rows[3][5] == [("b", None), ("b", b"x")]
