"""`shadow` as a person runs it: another generation beside the champion, until it serves or goes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from livevalue.embedded import Stack
from tests.e2e.deployment import START_MS, Deployment
from tests.parity.onstack import command, generations, serve, shaped, swept
from tests.parity.playing import generation
from tests.parity.test_flip import published

USERS = 60
DAY_MS = 86_400_000


def _order(user: int, day: float, amount: float) -> dict[str, object]:
    return {
        "type": "purchase",
        "event_id": f"o{user}-{day}",
        "user_id": f"u{user}",
        "event_time": START_MS + int(day * DAY_MS),
        "amount": f"{amount:.2f}",
    }


def _pair(file: Path) -> dict[str, Any]:
    """user -> row of a pair."""
    return {row["user_id"]: row for row in pq.read_table(file).to_pylist()}


def test_a_shadow_is_fed_and_judged_without_a_word_and_may_serve_then(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    settings = shaped(stack, topic_prefix, mixed=True, partitions=2)
    with Deployment(settings, tmp_path) as deployment:
        first = serve(settings, generation())
        for user in range(USERS):
            deployment.send(0, _order(user, user / 100, 5 + user))
        deployment.flush()
        deployment.start()
        deployment.settle()
        second = asyncio.run(published(deployment))
        said_before = len(list(deployment.read(settings.kafka.scores)))

        made = command(deployment, "shadow", second[:12])
        assert (made["generation"], made["taken"], made["users"]) == (second, True, USERS)
        kept = _pair(tmp_path / made["file"])
        assert {row["generation"] for row in kept.values()} == {first[:12]}
        assert {row["shadow_generation"] for row in kept.values()} == {second[:12]}
        # Nobody was told: no document, no record is of the shadow.
        assert set(generations(deployment).values()) == {first[:12]}
        assert len(list(deployment.read(settings.kafka.scores))) == said_before
        assert "serves already" in command(deployment, "shadow", first[:12], code=1)["said"]

        # Half of them come back, and the labels of 7 days mature.
        for user in range(0, USERS, 2):
            deployment.send(0, _order(user, 3, 20))
        deployment.send(0, _order(1, 12, 20))
        deployment.flush()
        deployment.settle()
        again = command(deployment, "shadow", second[:12])
        assert again["taken"] and again["file"] != made["file"]
        stores = {s["name"]: s for s in command(deployment, "stores", "ls")["stores"]}
        assert stores[made["store"]]["positions"] == stores["main"]["positions"]
        found = command(deployment, "audit", "--least", "5")["shadow"]
        assert found["pairs"] == 2
        (one,) = found["comparisons"]
        assert (one["shadow"], one["champion"]) == (second[:12], first[:12])
        assert (one["horizon_days"], one["snapshots"], one["users"]) == (7, 1, USERS)
        assert one["ngini_low"] <= one["ngini_delta"] <= one["ngini_high"]
        roles = {(row["role"], row["generation"]) for row in found["rows"]}
        assert roles == {("champion", first[:12]), ("shadow", second[:12])}
        actual = {row["actual"] for row in found["rows"] if row["evidence"] == "all"}
        assert actual == {20.0 * USERS / 2}

        # What it said beside the champion is what it says when it serves.
        told = _pair(tmp_path / again["file"])
        command(deployment, "promote", second[:12])
        swept(deployment, second)
        for name in ("u0", "u1", "u2"):
            shown = command(deployment, "get", name, "--at", again["snapshot"])["values"]
            for horizon in ("d7", "d30", "d90"):
                expected = told[name][f"shadow_{horizon}_expected"]
                assert shown[horizon]["expected"] == pytest.approx(expected, rel=1e-3)
        assert command(deployment, "verify")["different"] == 0
        assert "serves already" in command(deployment, "shadow", second[:12], code=1)["said"]

        began = time.monotonic()
        back = command(deployment, "rollback")
        assert back["generation"] == first
        assert time.monotonic() - began < 5
        swept(deployment, first)
        assert command(deployment, "verify")["different"] == 0
