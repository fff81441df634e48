"""`livevalue export`: over the store in memory, then a process against the real one."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
import redis

from featurestore import times
from featurestore.backends.memory import Backing, MemoryStore
from featurestore.partitioner import partition
from featurestore.store import Commit, CommitOutcome, Identity, Meta, Watermark, Write
from livevalue.embedded import Stack
from livevalue.jobs.exporting import Choice, Format, Segment, export_from
from livevalue.output import Refused
from tests.livevalue.values import AS_OF, AS_OF_MS, PARTITIONS, document, publish, settings

DAY = times.DAY_MS
WORTH = {f"u{i}": float(i) for i in range(10)}


class _Twice(MemoryStore):
    """A scan that names users again, as Redis may while its keyspace grows."""

    async def scan(self, partition: int, cursor: str, limit: int) -> tuple[list[str], str]:
        users, after = await super().scan(partition, cursor.rstrip("!"), 2)
        if cursor.endswith("!") or not users:
            return users, after
        return [*users, *users[:1]], f"{cursor}!"


async def _held(worth: dict[str, float], clock: str = "wall") -> tuple[MemoryStore, Backing]:
    """A deployment in memory whose live store is `next`, not the one of the settings."""
    backing = Backing()
    main, live = MemoryStore("main", backing), MemoryStore("next", backing)
    await main.set_meta(
        Meta(1, PARTITIONS, "murmur2", {"kind": "money"}, ("d7", "d30", "d90"), "main", clock)
    )
    for p in range(PARTITIONS):
        claim = await live.claim(p)
        users = [user for user in worth if partition(user, PARTITIONS, "murmur2") == p]
        writes = [
            Write(user, b"s", json.dumps(document(user, worth[user], i + 1)).encode(), worth[user])
            for i, user in enumerate(users)
        ]
        # A state without a document: what an erase leaves.
        writes.append(Write(f"gone{p}", b"s"))
        clocks = (AS_OF_MS, AS_OF_MS + DAY, 0)
        mark = Watermark((1, 1, 1), clocks, Identity(1, claim.token), "log", ("", "", ""), "f", "g")
        done = await live.commit(p, Commit(claim.token, None, mark, writes))
        assert done is CommitOutcome.OK
    return main, backing


async def _exported(
    file: Path,
    worth: dict[str, float] = WORTH,
    choice: Choice = Choice(),  # noqa: B008  frozen
    form: Format = "jsonl",
    wall_ms: int = AS_OF_MS,
    clock: str = "wall",
) -> dict[str, Any]:
    main, backing = await _held(worth, clock)
    return await export_from(main, lambda name: _Twice(name, backing), file, form, choice, wall_ms)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_every_user_is_one_row_of_the_live_store(tmp_path: Path) -> None:
    file = tmp_path / "values.jsonl"
    facts = await _exported(file)
    rows = _lines(file)
    assert sorted(row["user_id"] for row in rows) == sorted(WORTH)
    assert (facts["rows"], facts["users"], facts["file"]) == (10, 10, str(file))
    row = next(row for row in rows if row["user_id"] == "u7")
    assert list(row) == facts["columns"]
    assert row["d7_expected"] == row["d90_expected"] == row["value"] == 7.0
    assert row["d90_p_active"] == 0.5
    past = document("u7", 7.0)["history"]
    assert {name: row[name] for name in past} == past
    assert (row["unit"], row["evidence"], row["generation"]) == ("GBP", "enough", "3f9c0a1b22cd")
    assert (row["headline"], row["cause"]) == ("d90", "purchase")


async def test_percentile_is_the_share_of_all_users_that_are_worth_less(tmp_path: Path) -> None:
    file = tmp_path / "values.jsonl"
    await _exported(file, {"a": 1.0, "b": 2.0, "c": 2.0, "d": 9.0})
    ranks = {row["user_id"]: (row["percentile"], row["tier"]) for row in _lines(file)}
    assert ranks == {
        "a": (0.0, "rest"),
        "b": (0.25, "rest"),
        "c": (0.25, "rest"),
        "d": (0.75, "top25"),
    }


async def test_values_are_brought_to_now_by_the_silence_curve(tmp_path: Path) -> None:
    file = tmp_path / "values.jsonl"
    facts = await _exported(file, {"ada": 8.0}, wall_ms=AS_OF_MS + DAY)
    (row,) = _lines(file)
    assert facts["as_of"] == row["as_of"] == "2011-09-11T12:00:00Z"
    assert row["changed_at"] == AS_OF
    assert (row["value"], row["d7_expected"], row["d7_p_active"]) == (6.0, 6.0, 0.375)
    assert "d7_p90" not in row, "quantiles have no silence curve"


async def test_as_published_keeps_them_as_they_are_with_quantiles(tmp_path: Path) -> None:
    file = tmp_path / "values.jsonl"
    choice = Choice(as_published=True)
    facts = await _exported(file, {"ada": 8.0}, choice, wall_ms=AS_OF_MS + DAY)
    (row,) = _lines(file)
    assert facts["as_of"] is None
    assert (row["as_of"], row["value"], row["d7_p90"]) == (AS_OF, 8.0, 3.0)


async def test_now_is_the_logs_time_where_history_is_played_in(tmp_path: Path) -> None:
    facts = await _exported(tmp_path / "v.jsonl", wall_ms=AS_OF_MS + 900 * DAY, clock="log")
    assert facts["as_of"] == "2011-09-11T12:00:00Z", "the latest clock of any source"


@pytest.mark.parametrize(
    ("choice", "users"),
    [
        (Choice(min_value=8.0), ["u8", "u9"]),
        (Choice(segment=Segment.parse("top10%")), ["u9"]),
        (Choice(segment=Segment.parse("bottom20%")), ["u0", "u1"]),
        (Choice(segment=Segment.parse("20-40%")), ["u2", "u3"]),
        (Choice(segment=Segment.parse("top50%"), min_value=8.0), ["u8", "u9"]),
        (Choice(changed_since_ms=AS_OF_MS), sorted(WORTH)),
        (Choice(changed_since_ms=AS_OF_MS + 1), []),
    ],
    ids=str,
)
async def test_a_choice_takes_rows_but_ranks_among_all(
    tmp_path: Path, choice: Choice, users: Sequence[str]
) -> None:
    file = tmp_path / "values.jsonl"
    facts = await _exported(file, choice=choice)
    rows = {row["user_id"]: row["percentile"] for row in _lines(file)}
    assert sorted(rows) == users
    assert facts["users"] == 10
    assert all(rank == float(user[1:]) / 10 for user, rank in rows.items())


@pytest.mark.parametrize("text", ["", "top", "top0%", "top101%", "65-25%", "10%", "vip", "5-5%"])
def test_what_is_no_segment_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="write top10%"):
        Segment.parse(text)


async def test_the_formats_hold_the_same_rows(tmp_path: Path) -> None:
    worth = {"ada": 1.0, 'zoë "✓",\n2': 2.5}
    files = {form: tmp_path / f"values.{form}" for form in ("jsonl", "csv", "parquet")}
    for form, file in files.items():
        await _exported(file, worth, form=form)  # type: ignore[arg-type]
    lines = _lines(files["jsonl"])
    table = pq.read_table(files["parquet"])
    assert str(table.schema.field("as_of").type) == "timestamp[ms, tz=UTC]"
    assert str(table.schema.field("orders").type) == "int64"
    for name in ("user_id", "value", "percentile", "tier", "spent", "revision"):
        assert table.column(name).to_pylist() == [row[name] for row in lines]
    stamps = [times.of(when) for when in table.column("last_event_at").to_pylist()]
    assert stamps == [times.parse(row["last_event_at"]) for row in lines]
    with files["csv"].open(encoding="utf-8", newline="") as text:
        read = list(csv.DictReader(text))
    assert read == [{name: str(cell) for name, cell in row.items()} for row in lines]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
async def test_no_rows_make_a_file_all_the_same(tmp_path: Path, form: Format) -> None:
    file = tmp_path / "values"
    facts = await _exported(file, choice=Choice(min_value=99.0), form=form)
    assert facts["rows"] == 0
    if form == "parquet":
        assert pq.read_table(file).column_names == facts["columns"]
    else:
        assert file.read_text() == ("" if form == "jsonl" else ",".join(facts["columns"]) + "\n")


async def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "values.csv"
    file.write_text("as it was")
    # A document whose time is none fails late: where rows are written.
    worth = {"ada": 1.0}
    main, backing = await _held(worth)
    p = partition("ada", PARTITIONS, "murmur2")
    live = MemoryStore("next", backing)
    mark = (await live.load(p, [])).watermark
    assert mark is not None
    claim = await live.claim(p)
    broken = document("ada", 1.0)
    broken["history"]["last_event_at"] = "yesterday"
    after = Watermark(
        (2, 1, 1), mark.clocks, Identity(2, claim.token), "log", ("", "", ""), "f", "g"
    )
    write = Write("ada", b"s", json.dumps(broken).encode(), 1.0)
    assert await live.commit(p, Commit(claim.token, mark, after, [write])) is CommitOutcome.OK
    with pytest.raises(times.TimeError):
        await export_from(
            main, lambda name: MemoryStore(name, backing), file, "parquet", Choice(), AS_OF_MS
        )
    assert file.read_text() == "as it was"
    assert _names(tmp_path) == ["values.csv"]


async def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"cannot write .*: name another file"):
        await _exported(tmp_path / "missing" / "values.jsonl")
    with pytest.raises(Refused, match="is a folder"):
        await _exported(tmp_path)
    assert _names(tmp_path) == []


async def test_without_values_it_says_what_to_run(tmp_path: Path) -> None:
    store = MemoryStore("main", Backing())
    with pytest.raises(Refused, match="livevalue run"):
        await export_from(store, lambda name: store, tmp_path / "v.csv", "csv", Choice(), AS_OF_MS)
    assert _names(tmp_path) == []


def _run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith("LIVEVALUE_")}
    return subprocess.run(
        [sys.executable, "-m", "livevalue.cli", "export", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={**kept, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), **environment},
    )


async def test_the_command_exports_a_real_store(stack: Stack, tmp_path: Path) -> None:
    found = settings(stack.bootstrap, stack.redis_url, 8)
    url = found.store.url.get_secret_value()
    redis.Redis.from_url(url).flushdb()
    # More than a page, so that the cursor is walked.
    worth = {f"user {i}": float(i) for i in range(2500)}
    await publish(found, worth)
    environment = {
        "LIVEVALUE_STORE__URL": url,
        "LIVEVALUE_KAFKA__BOOTSTRAP": stack.bootstrap,
    }
    done = _run(tmp_path, "all.parquet", "--json", "-", **environment)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["rows"], facts["users"], facts["format"]) == (2500, 2500, "parquet")
    table = pq.read_table(tmp_path / "all.parquet")
    assert sorted(table.column("user_id").to_pylist()) == sorted(worth)
    assert max(table.column("value").to_pylist()) == 2499 / 2, "after the last knot it holds"

    done = _run(tmp_path, "vip.csv", "--segment", "top1%", "--as-published", **environment)
    assert done.returncode == 0, done.stderr
    assert "25 of 2,500 users" in done.stdout
    with (tmp_path / "vip.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["tier"] for row in rows} == {"top1"}
    assert min(float(row["value"]) for row in rows) == 2475.0
    assert _names(tmp_path) == ["all.parquet", "vip.csv"]
    redis.Redis.from_url(url).flushdb()
    await publish(found, {"ada": 1.0})
    done = _run(tmp_path, "one.csv", **environment)
    assert done.stdout.startswith("1 of 1 user, as of "), done.stderr


@pytest.mark.parametrize(
    "wrong",
    [("values.xlsx",), ("v.csv", "--segment", "vip"), ("v.csv", "--changed-since", "yesterday")],
)
def test_wrong_usage_is_exit_code_two(tmp_path: Path, wrong: tuple[str, ...]) -> None:
    done = _run(tmp_path, *wrong)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
