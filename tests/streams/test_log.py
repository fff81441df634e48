"""Event logs in files: every format the same events, in log order, in bounded memory."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from featurestore import times
from featurestore.columns import EventBatch, Kind
from featurestore.partitioner import partition
from streams.codec import Codec
from streams.errors import LogFileError
from streams.log import FileLog
from streams.settings import KafkaSettings, Settings
from streams.sorting import external_sort

SETTINGS = Settings(kafka=KafkaSettings(partitions=3))


def write(path: Path, rows: Iterable[dict[str, Any] | str | bytes]) -> Path:
    """JSONL of rows; text and bytes go in as they are."""
    lines = [
        row
        if isinstance(row, bytes)
        else (row if isinstance(row, str) else json.dumps(row)).encode()
        for row in rows
    ]
    data = b"\n".join(lines) + b"\n"
    match path.suffix:
        case ".gz":
            path.write_bytes(gzip.compress(data))
        case ".zst":
            # Two frames, as `cat a.zst b.zst` makes.
            path.write_bytes(zstandard.compress(data[:20]) + zstandard.compress(data[20:]))
        case _:
            path.write_bytes(data)
    return path


def read(log: FileLog, partitions: int = 3, size: int = 1000) -> list[tuple[Any, ...]]:
    """(user, time, kind, value, event id, log time) of all events, in log order."""
    found = []
    for p, batch in log.batches(partitions, size):
        for user, row, offset, event_id, log_ms in columns(batch):
            assert partition(user, partitions) == p
            found.append((offset, user, row["time_ms"], row["kind"], row["value_micro"], event_id,
                          log_ms))  # fmt: skip
    return [tuple(one) for _, *one in sorted(found)]


def columns(batch: EventBatch) -> Iterable[tuple[str, Any, int, str | None, int]]:
    users = [batch.users[row] for row in batch.user]
    yield from zip(users, batch.events, batch.offset, batch.event_id, batch.log_ms, strict=True)


def purchase(user: str, at: Any, amount: str, **more: Any) -> dict[str, Any]:
    return {"type": "purchase", "user_id": user, "event_time": at, "amount": amount, **more}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson"])
def test_json_lines_are_read_compressed_or_not(tmp_path: Path, suffix: str) -> None:
    path = write(
        tmp_path / f"log{suffix}",
        [
            purchase("ada", 2000, "1.5", event_id="b"),
            "",
            {"type": "browse", "user_id": "bob", "event_time": 1000, "event_id": "a"},
        ],
    )
    events = read(FileLog([path], SETTINGS))
    assert events == [("bob", 1000, 0, 0, "a", 1000), ("ada", 2000, 1, 1_500_000, "b", 2000)]


def test_csv_parquet_and_json_lines_give_the_same_events(tmp_path: Path) -> None:
    rows = [
        ["17850", "2010-12-01 08:26:00", "139.120", "536365", "cart"],
        ["13047", "2010-12-01 08:34:00", "-8.50", "C536379", ""],
    ]
    table = tmp_path / "orders.csv"
    with table.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["CustomerID", "At", "Total", "No", "Category"], *rows])
    moments = [datetime.fromisoformat(row[1]) for row in rows]
    pq.write_table(
        pa.table(
            {
                "CustomerID": pa.array([17850.0, 13047.0]),  # as pandas writes nullable integers
                "At": pa.array(moments, pa.timestamp("us")),
                "Total": pa.array([139.12, -8.5]),
                "No": pa.array(["536365", "C536379"]).dictionary_encode(),
                "Category": pa.array(["cart", None]),
            }
        ),
        tmp_path / "orders.parquet",
    )
    named = write(
        tmp_path / "orders.jsonl",
        [
            dict(zip(["CustomerID", "At", "Total", "No", "Category"], row, strict=True))
            for row in rows
        ],
    )
    mapping = {"user_id": "CustomerID", "event_time": "At", "amount": "Total", "event_id": "No",
               "category": "Category"}  # fmt: skip
    logs = [
        FileLog([path], SETTINGS, mapping, "purchase")
        for path in (table, tmp_path / "orders.parquet", named)
    ]
    first, second, third = (read(log) for log in logs)
    at = times.of(moments[0].replace(tzinfo=UTC))
    assert first[0] == ("17850", at, 1, 139_120_000, "536365", at)
    assert first[1][3] == -8_500_000
    assert first == second == third


def test_rows_come_in_log_order_whatever_the_order_of_files(tmp_path: Path) -> None:
    rows = [
        purchase(f"u{i % 7}", 1000 * i, "1", event_id=str(i), log_time=5000 * (i // 5))
        for i in range(200)
    ]
    shuffled = random.Random(1).sample(rows, len(rows))
    one = write(tmp_path / "one.jsonl", shuffled[:90])
    two = write(tmp_path / "two.jsonl", shuffled[90:])
    events = read(FileLog([one, two], SETTINGS))
    arrived = [log_ms for *_, log_ms in events]
    assert arrived == sorted(arrived)
    assert {event_id for *_, event_id, _ in events} == {str(i) for i in range(200)}
    small = FileLog([two, one], SETTINGS)
    assert sorted(read(small, size=1)) == sorted(events)
    assert small.counts["without_log_time"] == 0


def test_positions_grow_within_a_partition_and_source(tmp_path: Path) -> None:
    rows = [
        {"type": kind, "user_id": f"u{i}", "event_time": 977 * i % 5000, "amount": 1, "action": "x"}
        for i in range(300)
        for kind in ("browse", "purchase", "interaction")
    ]
    last: dict[tuple[int, int], int] = {}
    for p, batch in FileLog([write(tmp_path / "a.jsonl", rows)], SETTINGS).batches(3, 50):
        assert batch.size <= 50
        for source in range(3):
            offsets = batch.offset[batch.events["source"] == source]
            assert (np.diff(offsets) > 0).all()
            if len(offsets):
                assert offsets[0] > last.get((p, source), -1)
                last[p, source] = int(offsets[-1])


def test_equal_rows_without_ids_count_each_and_keep_their_ids(tmp_path: Path) -> None:
    row = purchase("ada", 1000, "5")
    other = purchase("ada", 2000, "5")
    log = FileLog([write(tmp_path / "a.jsonl", [row, other, row])], SETTINGS)
    ids = [event_id for *_, event_id, _ in read(log)]
    assert len(set(ids)) == 3
    moved = FileLog([write(tmp_path / "b.jsonl", [other, row, row])], SETTINGS)
    assert [event_id for *_, event_id, _ in read(moved)] == ids


def test_a_later_arrival_of_equal_content_is_another_event(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user_id,event_time,amount,log_time\nada,1,5,10\nada,1,5,20\n")
    ids = {event_id for *_, event_id, _ in read(FileLog([path], SETTINGS, type="purchase"))}
    assert len(ids) == 2


def test_what_is_sent_to_kafka_is_what_a_replay_of_the_file_reads(tmp_path: Path) -> None:
    rows = [
        purchase("ada", 1000, "5"),
        {"user_id": "bob", "event_time": 500},
        purchase("ada", 1, "2"),
    ]
    log = FileLog([write(tmp_path / "a.jsonl", rows)], SETTINGS, type="browse")
    sent = list(log.records())
    assert [topic for topic, *_ in sent] == ["events.purchase", "events.browse", "events.purchase"]
    hashes = set()
    for topic, key, value, log_ms in sent:
        source = SETTINGS.kafka.sources.index(topic)
        p = partition(key, 3)
        decoded = Codec(SETTINGS).decode(source, p, [_Sent(key, value, 0, log_ms)])
        assert decoded.rejected == []
        hashes.add((decoded.batch.events["id_hi"][0], decoded.batch.events["content"][0]))
    assert hashes == {
        (row["id_hi"], row["content"]) for _, batch in log.batches(3, 10) for row in batch.events
    }


class _Sent:
    """A record as a consumer gives it."""

    def __init__(self, key: bytes, value: bytes, offset: int, timestamp: int) -> None:
        self.key, self.value, self.offset, self.timestamp = key, value, offset, timestamp
        self.headers: tuple[tuple[str, bytes], ...] = ()


def test_a_row_without_user_is_skipped_or_rejected(tmp_path: Path) -> None:
    rows = [purchase("ada", 1, "1"), purchase("", 1, "1"), {"type": "browse", "event_time": 1}]
    path = write(tmp_path / "a.jsonl", [*rows, purchase("x", 1, "1") | {"user_id": None}])
    skipping = FileLog([path], SETTINGS)
    assert len(read(skipping)) == 1
    assert skipping.counts["anonymous"] == 3
    rejecting = FileLog([path], SETTINGS, anonymous="reject")
    assert len(read(rejecting)) == 1
    assert (rejecting.counts["rejected_missing_field"], rejecting.counts["anonymous"]) == (3, 0)
    assert [r.place for r in rejecting.rejections] == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:4"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{", "not_json"),
        (b'{"user_id":"a","event_time":1,"type":"browse","page":"\xff"}', "not_json"),
        (b"[1]", "not_object"),
        (b'{"user_id":5,"event_time":1,"type":"browse"}', "invalid_field"),
        (b'{"user_id":"a","event_time":true,"type":"browse"}', "invalid_field"),
        (b'{"user_id":"a","event_time":"soon","type":"browse"}', "invalid_field"),
        (b'{"user_id":"a","type":"browse"}', "missing_field"),
        (b'{"user_id":"a","event_time":1}', "missing_field"),
        (b'{"user_id":"a","event_time":1,"type":"refund"}', "invalid_field"),
        (b'{"user_id":"a","event_time":1,"type":"purchase"}', "missing_field"),
        (b'{"user_id":"a","event_time":1,"type":"purchase","amount":NaN}', "not_json"),
        (b'{"user_id":"a","event_time":1,"type":"browse","log_time":"later"}', "invalid_field"),
        (b'{"user_id":"a","event_time":1,"type":"browse","x":' + b"[" * 100_000, "not_json"),
        (b'{"user_id":"a","event_time":1,"type":"browse","x":"' + b"x" * (2 << 20), "too_large"),
        (b'{"user_id":"a","event_time":1,"type":"purchase","amount":1,"currency":"USD"}',
         "unknown_currency"),
    ],
)  # fmt: skip
def test_a_bad_line_is_counted_with_its_reason_and_place(
    tmp_path: Path, bad: bytes, reason: str
) -> None:
    good = purchase("ada", 1, "1", event_id="e")
    log = FileLog([write(tmp_path / "a.jsonl", [good, bad, good | {"event_id": "f"}])], SETTINGS)
    assert [event_id for *_, event_id, _ in read(log)] == ["e", "f"]
    assert log.counts[f"rejected_{reason}"] == 1
    assert [r.place for r in log.rejections] == ["a.jsonl:2"]


def test_a_bad_cell_is_counted_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"user_id,event_time,quantity,price,items\n"
        b"ada,2011-09-10,2,1.25,\nada,2011-09-10,two,1.25,\nada,never,2,1.25,\n"
        b"ada,2011-09-10,2,1.25,[\n\xff,2011-09-10,2,1.25,\nada,,2,1.25,\n"
    )
    log = FileLog([path], SETTINGS, type="purchase")
    assert [value for _, _, _, value, *_ in read(log)] == [2_500_000]
    rejected = {name: n for name, n in log.counts.items() if name.startswith("rejected")}
    assert rejected == {
        "rejected_invalid_field": 3, "rejected_not_json": 1, "rejected_missing_field": 1
    }  # fmt: skip


def test_lines_of_an_order_become_one_purchase(tmp_path: Path) -> None:
    path = tmp_path / "lines.csv"
    path.write_text(
        "No,User,At,Sku,Qty,Price\n"
        "1,ada,2011-09-10 12:01:00,a,3,0.1\n2,ada,2011-09-10 12:00:30,c,-1,5\n"
        "1,ada,2011-09-10 12:00:00,b,1,0.000001\n1,bob,2011-09-10 12:00:00,b,1,2\n"
        ",ada,2011-09-10 13:00:00,b,1,9\n1,,2011-09-10 12:00:00,b,1,2\n3,ada,2011-09-10,b,x,2\n"
    )
    mapping = {"order_id": "No", "user_id": "User", "event_time": "At", "item_id": "Sku",
               "quantity": "Qty", "price": "Price"}  # fmt: skip
    log = FileLog([path], SETTINGS, mapping, "purchase", order_lines=True)
    noon = times.parse("2011-09-10T12:00:00Z")
    events = sorted(read(log), key=lambda one: one[1:])
    assert [(user, at - noon, value) for user, at, _, value, *_ in events] == [
        ("ada", 0, 300_001),
        ("bob", 0, 2_000_000),
        ("ada", 30_000, -5_000_000),
        ("ada", 3_600_000, 9_000_000),
    ]
    assert [event_id for *_, event_id, _ in events][:3] == ["1", "1", "2"]
    assert log.counts["order_lines"] == 4
    assert (log.counts["anonymous"], log.counts["rejected_invalid_field"]) == (1, 1)
    values = [json.loads(value) for _, _, value, _ in log.records()]
    first = next(v for v in values if v["user_id"] == "ada" and v["order_id"] == "1")
    assert [item["item_id"] for item in first["items"]] == ["a", "b"]
    assert first["amount"] == "0.300001"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"columns": {"customer": "X"}}, "no field customer; write FIELD=COLUMN, for"),
        ({"columns": {"user_id": "Nobody"}}, "no column Nobody; it has user_id"),
        ({"type": "refund"}, "browse, purchase, interaction"),
    ],
)
def test_a_wrong_request_says_what_to_do(
    tmp_path: Path, arguments: dict[str, Any], says: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user_id,event_time\nada,1\n")
    with pytest.raises(LogFileError, match=says):
        read(FileLog([path], SETTINGS, **arguments))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(LogFileError, match="no such file"):
        FileLog([tmp_path / "none.csv"], SETTINGS)
    with pytest.raises(LogFileError, match=r"\.jsonl, \.csv or \.parquet"):
        FileLog([tmp_path / "log.txt"], SETTINGS)
    for name in ("a.parquet", "a.jsonl.gz", "a.csv.zst"):
        (tmp_path / name).write_bytes(b"not what the name says")
        with pytest.raises(LogFileError, match=name):
            read(FileLog([tmp_path / name], SETTINGS))


@given(
    st.lists(st.tuples(st.integers(0, 9), st.binary(max_size=9)), max_size=60), st.integers(1, 5000)
)
def test_sorting_outside_memory_equals_sorting_in_it(rows: list[Any], memory: int) -> None:
    assert list(external_sort(rows, memory)) == sorted(rows)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_online_retail_lines_become_orders_and_refunds(data_dir: Path) -> None:
    mapping = {"user_id": "CustomerID", "order_id": "InvoiceNo", "event_time": "InvoiceDate",
               "item_id": "StockCode", "quantity": "Quantity", "price": "UnitPrice"}  # fmt: skip
    path = data_dir / "online_retail" / "online_retail.csv.gz"
    log = FileLog([path], SETTINGS, mapping, "purchase", order_lines=True)
    values: list[int] = []
    ids: list[str | None] = []
    users: set[str] = set()
    for _, batch in log.batches(3, 4000):
        values += batch.events["value_micro"].tolist()
        ids += batch.event_id
        users.update(batch.users)
    assert log.counts["rows"] == 541_909
    assert log.counts["anonymous"] == 135_080
    assert log.counts["order_lines"] == 541_909 - 135_080
    assert log.rejections == []
    assert (len(values), len(users)) == (22_190, 4_372)
    assert sum(values) == 8_300_065_814_000
    cancelled = [i is not None and i.startswith("C") for i in ids]
    assert all(value <= 0 for value, c in zip(values, cancelled, strict=True) if c)
    assert all(value >= 0 for value, c in zip(values, cancelled, strict=True) if not c)
    assert sum(cancelled) == 3_654


def test_taobao_events_of_four_kinds_are_read(data_dir: Path, tmp_path: Path) -> None:
    """The file has no header, seconds, and its own names: ten lines map it."""
    kinds = {"pv": ("browse", None), "buy": ("purchase", None), "cart": ("interaction", "cart_add"),
             "fav": ("interaction", "wishlist")}  # fmt: skip
    rows = []
    with (data_dir / "taobao_micro" / "UserBehavior.csv").open() as file:
        for user, item, category, what, seconds in csv.reader(file):
            kind, action = kinds[what]
            row = {"type": kind, "user_id": user, "item_id": item, "category": category,
                   "event_time": int(seconds) * 1000}  # fmt: skip
            rows.append(row | ({"action": action} if action else {"amount": "0"}))
    log = FileLog([write(tmp_path / "taobao.jsonl.zst", rows)], SETTINGS)
    events = read(log)
    assert len(events) == 4_321
    assert log.rejections == []
    counted = {kind: sum(e[2] == kind for e in events) for kind in Kind}
    assert counted == {Kind.BROWSE: 3_926, Kind.PURCHASE: 77, Kind.INTERACTION: 318}
    assert len({e[0] for e in events}) == 43
    assert len({event_id for *_, event_id, _ in events}) == 4_321
