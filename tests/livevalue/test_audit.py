"""`audit` as a person runs it: snapshots of what is served, later held against what came true."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
import typer
from typer.testing import CliRunner

from featurestore import times
from featurestore.store import CommitOutcome
from livevalue.commands import audit as shown
from livevalue.commands import generations
from livevalue.embedded import Stack
from livevalue.jobs.auditing import audit, drift
from livevalue.jobs.snapshots import SERVED
from livevalue.output import Output, Refused
from livevalue.sources import FileOptions
from scoring.generation import Bins, Generation, Reference, build, prior
from scoring.inputs import FEATURE_NAMES, HELD_NAMES
from scoring.retraining.audit import Thresholds
from scoring.retraining.settings import RetrainSettings
from scoring.settings import ModelSettings
from streams.settings import Settings
from streams.stores import Stores
from tests.e2e.deployment import START_MS, Deployment
from tests.parity.onstack import built, command, serve, shaped

DAY_MS = 86_400_000
USERS = 120


def _order(user: int, day: float, amount: str) -> dict[str, object]:
    return {
        "event_id": f"o{user}-{day}",
        "user_id": f"u{user}",
        "event_time": START_MS + int(day * DAY_MS),
        "amount": amount,
    }


def test_what_was_served_is_kept_and_held_against_what_users_then_spent(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    settings = shaped(stack, topic_prefix, mixed=True, partitions=2)
    with Deployment(settings, tmp_path) as deployment:
        said = command(deployment, "audit", "--snapshot", code=1)["said"]
        assert "there are no values yet" in said
        worker = deployment.start()
        for user in range(USERS):
            deployment.send(0, {"type": "purchase", **_order(user, 0, f"{5 + user}.00")})
        deployment.flush()
        deployment.settle()
        # The archiver takes the day's snapshot along; the first of a day stays.
        kept = command(deployment, "archive")
        assert kept["events"] == USERS
        again = command(deployment, "audit", "--snapshot")
        assert (again["file"], again["taken"]) == (kept["snapshot"], False)
        served = {
            row["user_id"]: row for row in pq.read_table(tmp_path / kept["snapshot"]).to_pylist()
        }
        assert len(served) == USERS
        shown = command(deployment, "get", "u7", "--at", again["snapshot"])["values"]["d7"]
        assert served["u7"]["d7_expected"] == shown["expected"]
        assert served["u7"]["d7_p10"] == shown["if_active"]["p10"]
        early = command(deployment, "audit")
        assert early["rows"] == []
        assert {w["horizon_days"] for w in early["waiting"]} == {7, 30, 90}

        for user in range(0, USERS, 2):
            deployment.send(0, {"type": "purchase", **_order(user, 2, "10.00")})
        for user in (1, 2, 3):  # beyond the horizon, and the allowed lateness after it
            deployment.send(0, {"type": "purchase", **_order(user, 11, "500.00")})
        deployment.flush()
        deployment.settle()
        words = ["audit", "--bias", "0.99", "--least", "10", "--metrics", "a.prom"]
        found = command(deployment, *words, "--fail-on-alarm", code=1)
        row = next(row for row in found["rows"] if row["evidence"] == "all")
        assert (row["horizon_days"], row["users"], row["active"]) == (7, USERS, USERS // 2)
        assert row["actual"] == 10.0 * USERS / 2
        assert abs(row["bias"] - row["expected"] / row["actual"]) < 1e-4
        assert {w["horizon_days"] for w in found["waiting"]} == {30, 90}
        assert times.parse(row["snapshot"]) == START_MS
        assert found["alarm"] and "bias" in row["alarms"]
        metrics = (tmp_path / "a.prom").read_text()
        assert 'livevalue_audit_alarm{evidence="all"' in metrics
        assert worker.stop() == 0


def _log(folder: Path, until_day: int) -> str:
    """Users 0 to 9: one order of 10 every day from the second on; user 0 begins a day before."""
    rows = [{"type": "purchase", **_order(0, 0.5, "10.00")}]
    rows += [
        {"type": "purchase", **_order(user, day, "10.00")}
        for day in range(1, until_day + 1)
        for user in range(10)
    ]
    file = folder / "log.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def _snapshot(folder: Path, day: float, level: float = 1.0, horizons: Sequence[int] = (7,)) -> str:
    """A snapshot of users 0 to 9; `level` is what was expected over what comes true."""
    moment_ms = START_MS + int(day * DAY_MS)
    columns: dict[str, list[Any]] = {
        "user_id": [f"u{user}" for user in range(10)],
        "as_of": [moment_ms - 1] * 10,
        "spent": [10.0] * 10,
        "generation": ["aaa"] * 10,
        "evidence": ["thin"] * 10,
    }
    for days in horizons:
        said = {"expected": 10.0 * days * level, "p_active": 1.0, "p90": 1000.0}
        columns |= {f"d{days}_{name}": [value] * 10 for name, value in said.items()}
        columns[f"d{days}_p10"] = [1.0] * 8 + [999.0] * 2  # eight in ten are covered
    file = folder / SERVED / f"{times.text(moment_ms)[:10]}.parquet"
    file.parent.mkdir(exist_ok=True)
    table = pa.table(columns).replace_schema_metadata({"snapshot_ms": str(moment_ms)})
    pq.write_table(table, file)
    return file.name


def _audited(folder: Path, src: str, last: int = 30) -> dict[str, Any]:
    few = Thresholds(least=1, bias=0.7, cover=0.08, rank=0.05)
    return audit(Settings(), [src], FileOptions(), folder, few, last)


def _days(found: dict[str, Any], horizon: int, *, newest: bool | None = None) -> list[float]:
    return [
        (times.parse(row["snapshot"]) - START_MS) / DAY_MS
        for row in found["rows"]
        if row["horizon_days"] == horizon and row["evidence"] == "all"
        if newest is None or row["newest"] is newest
    ]


def test_the_newest_snapshots_of_each_horizon_are_judged(tmp_path: Path) -> None:
    src = _log(tmp_path, 30)
    for day in (2, 6, 14, 20):
        _snapshot(tmp_path, day, horizons=(7, 14))
    found = _audited(tmp_path, src)
    # A label is there at day 30 where snapshot + horizon + 3 days of lateness are past.
    assert _days(found, 7) == [2, 6, 14, 20]
    assert _days(found, 14) == [2, 6]
    assert (_days(found, 7, newest=True), _days(found, 14, newest=True)) == ([20], [6])
    assert {row["actual"] for row in found["rows"]} == {700.0, 1400.0}
    assert [(one["snapshot"][:10], one["horizon_days"]) for one in found["waiting"]] == [
        (times.text(START_MS + day * DAY_MS)[:10], 14) for day in (14, 20)
    ]
    few = _audited(tmp_path, src, last=1)
    assert (_days(few, 7), _days(few, 14)) == ([20], [6])
    assert (few["snapshots"], few["waiting"]) == (4, found["waiting"])
    assert _days(_audited(tmp_path, src, last=3), 7) == [6, 14, 20]


def test_only_the_newest_snapshot_gives_the_alarm(tmp_path: Path) -> None:
    src = _log(tmp_path, 30)
    _snapshot(tmp_path, 2, level=9.0)
    _snapshot(tmp_path, 6)
    mended = _audited(tmp_path, src)
    assert [row["alarms"] for row in mended["rows"] if not row["newest"]] == [["bias"]] * 2
    assert not mended["alarm"]
    _snapshot(tmp_path, 14, level=9.0)
    assert _audited(tmp_path, src)["alarm"]


def test_snapshots_before_the_log_are_named_and_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    src = _log(tmp_path, 30)
    older = [_snapshot(tmp_path, -1), _snapshot(tmp_path, 0.49)]
    found = _audited(tmp_path, src)
    assert (found["rows"], found["waiting"], found["before_src"]) == ([], [], older)
    # Of a file every partition is whole from its first row on, though most begin a day later.
    _snapshot(tmp_path, 0.5)
    found = _audited(tmp_path, src)
    assert (_days(found, 7), found["before_src"], found["snapshots"]) == ([0.5], older[:1], 2)
    _snapshot(tmp_path, 25, horizons=(7,))
    shown._show(_audited(tmp_path, src) | {"erased": 1}, Output())
    said = capsys.readouterr().out
    assert "7 days: 1 snapshot waits for its labels, that of 20" in said
    assert "1 snapshot is older than the log" in said
    assert "1 user who was erased since is left out" in said


def test_without_snapshots_or_events_an_audit_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="livevalue audit --snapshot"):
        _audited(tmp_path, _log(tmp_path, 1))
    _snapshot(tmp_path, 1)
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(Refused, match="name another SRC"):
        _audited(tmp_path, str(tmp_path / "log.jsonl"))


def _watched() -> Generation:
    """A generation that keeps its training population."""
    made = prior(ModelSettings())
    columns = {"since_order": Bins(edges=(1.0,), shares=(0.5, 0.5))}
    reference = Reference(as_of_ms=START_MS, seen_within_s=90 * 86_400, users=1000, columns=columns)
    manifest = made.manifest.model_copy(update={"reference": reference})
    return build(manifest, {name: made.files[name] for name in made.manifest.sha256})


async def _flipped(settings: Settings, partition: int) -> None:
    """One partition is served from the store `aside` from now on."""
    stores = Stores(settings)
    try:
        main, aside = stores.store(), stores.store("aside")
        ours, other = await main.claim(partition), await aside.claim(partition)
        done = await main.flip(partition, ours.token, "aside", other.token)
        assert done == CommitOutcome.OK
    finally:
        await stores.close()


def test_a_retrain_goes_on_where_drift_cannot_be_told(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    settings = shaped(stack, topic_prefix, mixed=True, partitions=2)
    with Deployment(settings, tmp_path) as deployment:
        served = serve(settings, _watched())
        worker = deployment.start()
        for user in range(20):
            deployment.send(0, {"type": "purchase", **_order(user, 0, "5.00")})
        deployment.flush()
        deployment.settle()
        told = command(deployment, "audit", "--drift")
        assert (told["drift"]["psi"], told["drift"]["users"]) == (None, 20), told["drift"]
        assert told["drift"]["drifted"] is None
        assert "200 are needed" in told["drift"]["reason"]
        # No snapshot was taken yet, and none is needed.
        del told["drift"]
        assert told == {
            "rows": [],
            "alarm": False,
            "snapshots": 0,
            "waiting": [],
            "before_src": [],
            "erased": 0,
            "log_clock": None,
            "shadow": {"rows": [], "comparisons": [], "pairs": 0},
        }
        done = command(deployment, "retrain", "kafka", "--if-drifted", code=1)
        assert (done["drifted"], done["psi"], done["promoted"]) == (None, None, False)
        assert "label" in done["reason"], done["reason"]  # it has read the log
        assert worker.stop() == 0

        # One partition is flipped to another generation, then the other.
        prior_id = serve(settings, prior(ModelSettings()))
        built(settings, "kafka", generation=prior_id)
        asyncio.run(_flipped(settings, 1))
        between = asyncio.run(drift(settings))
        assert (between["psi"], between["generation"], between["users"]) == (None, None, 0)
        assert "a flip is under way" in between["reason"]
        assert served[:12] in between["reason"] and prior_id[:12] in between["reason"]
        asyncio.run(_flipped(settings, 0))
        after = asyncio.run(drift(settings))
        assert after["generation"] == prior_id
        assert "is not trained" in after["reason"]


def test_a_held_column_that_has_moved_is_an_alarm(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    settings = shaped(stack, topic_prefix, mixed=True, partitions=2)
    made = _watched()
    assert made.manifest.reference is not None
    # All of them ordered for 5.00 just now: one bin of the order's recency, and one of the money.
    columns = {
        "since_order": Bins(edges=(1.0,), shares=(1.0, 0.0)),
        "held_value_1": Bins(edges=(1.0,), shares=(0.5, 0.5)),
    }
    reference = made.manifest.reference.model_copy(update={"columns": columns})
    manifest = made.manifest.model_copy(
        update={"reference": reference, "features": (*FEATURE_NAMES, *HELD_NAMES)}
    )
    with Deployment(settings, tmp_path) as deployment:
        serve(settings, build(manifest, {}))
        worker = deployment.start()
        for user in range(220):
            deployment.send(0, {"type": "purchase", **_order(user, 0, "5.00")})
        deployment.flush()
        deployment.settle()
        words = ["audit", "--drift", "--fail-on-alarm", "--metrics", "a.prom"]
        found = command(deployment, *words, code=1)
        drifted = found["drift"]
        assert (drifted["drifted"], drifted["limit"], found["alarm"]) == (True, 0.25, True)
        assert drifted["columns"]["held_value_1"] == drifted["psi"] > 1
        assert drifted["columns"]["since_order"] < 0.01
        alarm = 'livevalue_audit_alarm{evidence="",generation="%s",horizon="",metric="psi"}'
        alarm %= drifted["generation"][:12]
        assert f"{alarm} 1.0" in (tmp_path / "a.prom").read_text()
        assert "! psi" in deployment.command("audit", "--drift").stdout
        far = command(deployment, *words, "--psi", "99")
        assert (far["drift"]["drifted"], far["drift"]["limit"], far["alarm"]) == (False, 99, False)
        assert f"{alarm} 0.0" in (tmp_path / "a.prom").read_text()
        wide = settings.model_copy(update={"retrain": RetrainSettings(psi=99)})
        assert asyncio.run(drift(wide))["drifted"] is False
        assert worker.stop() == 0


@pytest.mark.parametrize(
    ("words", "wanted"),
    [(("retrain", "kafka"), "--if-drifted"), (("audit",), "--drift")],
    ids=["retrain", "audit"],
)
def test_a_limit_of_drift_where_none_is_asked_for_is_wrong_usage(
    words: tuple[str, ...], wanted: str
) -> None:
    app = typer.Typer()
    generations.register(app)
    shown.register(app)
    refused = CliRunner().invoke(app, [*words, "--psi", "0.1"])
    assert refused.exit_code == 2
    assert wanted in refused.output
