"""`audit` as a person runs it: snapshots of what is served, later held against what came true."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq  # type: ignore[import-untyped]

from featurestore import times
from livevalue.embedded import Stack
from tests.e2e.deployment import START_MS, Deployment
from tests.parity.onstack import command, shaped

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
