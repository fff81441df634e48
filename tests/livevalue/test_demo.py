"""The demo: its orders, its simulated sessions, its hindsight, and one short run of it all."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console

from livevalue.demo.bundled import bundled
from livevalue.demo.hindsight import TOP, Lists, look_back, past_spenders
from livevalue.demo.orders import DAY_MS, Orders, load_orders, simulate
from livevalue.demo.screen import Screen, move_of
from livevalue.demo.story import Demo
from livevalue.output import Refused


def _orders(*rows: tuple[str, int, str]) -> Orders:
    users, days, amounts = zip(*rows, strict=True)
    return Orders(
        list(users),
        [day * DAY_MS for day in days],
        [Decimal(a) for a in amounts],
        [f"o{i}" for i in range(len(rows))],
        0,
    )


def test_shipped_orders_are_the_shop_s_orders_and_refunds() -> None:
    orders = load_orders()
    assert len(orders.times_ms) == 22_186
    assert sum(orders.amounts) == Decimal("8300065.814")
    assert sum(a < 0 for a in orders.amounts) == 3_654
    assert orders.times_ms == sorted(orders.times_ms)
    assert orders.anonymous == 135_080


def test_bundled_generation_has_seen_nothing_that_is_played() -> None:
    orders, manifest = load_orders(), bundled().manifest
    assert manifest.trained_until_ms is not None
    played = orders.between(manifest.trained_until_ms + 1, orders.times_ms[-1] + 1)
    assert len(played) > 10_000
    assert manifest.log_start_ms == orders.times_ms[0]
    assert manifest.family == "mingru"


def test_simulated_sessions_are_labelled_and_know_the_past_alone() -> None:
    past = [("ada", 5 * DAY_MS), ("bob", 80 * DAY_MS), ("cyd", 90 * DAY_MS)]
    start, end = 100 * DAY_MS, 140 * DAY_MS
    events = simulate(past, start, end, seed=3)
    assert events and events == simulate(past, start, end, seed=3)
    assert {e.user_id for e in events} <= {"bob", "cyd"}, "ada ordered too long ago"
    for event in events:
        body = json.loads(event.body)
        assert body["properties"] == {"simulated": True}
        assert start <= event.time_ms < end and event.amount == 0


def test_hindsight_counts_only_what_came_after() -> None:
    orders = _orders(
        ("ada", 1, "100"),
        ("bob", 2, "10"),
        ("bob", 20, "500"),
        ("ada", 21, "-30"),
        ("new", 22, "9"),
    )
    at_ms = 10 * DAY_MS
    assert past_spenders(orders, at_ms) == ["ada", "bob"]
    seen = look_back(orders, Lists(at_ms, ["bob"], ["ada"]), 30 * DAY_MS)
    assert [seen.by_value, seen.by_spend, seen.best] == [Decimal(500), Decimal(-30), Decimal(470)]
    assert seen.shared == 0
    assert seen.as_json()["days"] == 20
    assert seen.table().title == f"What each top {TOP} spent in the 20 days that followed"
    agreed = look_back(orders, Lists(at_ms, ["ada"], ["ada"]), 11 * DAY_MS).table()
    assert agreed.title == f"What each top {TOP} spent in the 1 day that followed"
    assert agreed.caption == "1 user is on both lists"


def _document(cause: str, value: float, before: float | None) -> dict[str, object]:
    return {
        "user_id": "ada",
        "as_of": "2011-09-10T12:00:00Z",
        "headline": "d90",
        "values": {"d90": {"expected": value, "p_active": 0.5}},
        "previous": None if before is None else {"revision": 1, "d90": before},
        "history": {"orders": 3},
        "cause": {"type": cause, "event_id": "o1"},
    }


@pytest.mark.parametrize(
    ("cause", "amount", "why"),
    [
        ("purchase", "4.00 GBP", "order of 4.00 GBP"),
        ("purchase", "-4.00 GBP", "refund of 4.00 GBP"),
        ("silence", None, "silence: time passed without an order"),
        ("browse", None, "browse"),
    ],
)
def test_a_move_says_why(cause: str, amount: str | None, why: str) -> None:
    move = move_of(_document(cause, 12.0, 10.0), amount)
    assert (move.why, move.change) == (why, 2.0)


def test_plain_output_names_the_largest_move() -> None:
    written = io.StringIO()
    with Screen(Console(file=written, width=200), "GBP", ["livevalue get ada"]) as screen:
        screen.add(move_of(_document("purchase", 12.0, 10.0), "4.00 GBP"))
        screen.show(1_000_000, "1 event", now=10.0)
        screen.show(1_000_000, "1 event", now=10.5)
    lines = written.getvalue().splitlines()
    assert lines[:2] == ["Join in from a second terminal:", "  livevalue get ada"]
    assert len(lines) == 3, "a line every two seconds, not each look"
    assert "user ada: 12.00 GBP +2.00 (order of 4.00 GBP)" in written.getvalue()


def test_a_narrow_terminal_still_says_that_sessions_are_simulated() -> None:
    written = io.StringIO()
    console = Console(file=written, width=80, force_terminal=True, height=40)
    with Screen(console, "GBP", []) as screen:
        screen.add(move_of(_document("browse", 12.0, 10.0), None))
        screen.show(1_000_000, "5 orders and refunds · 9 updates · 7 simulated events", now=10.0)
    assert "7 simulated events" in written.getvalue()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(Refused, match="not empty"):
        Demo(tmp_path, 30, simulate=False, console=Console(file=io.StringIO())).run()
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.timeout(180)
def test_demo_ends_by_itself_with_values_moved_and_no_process_left(tmp_path: Path) -> None:
    result = tmp_path / "demo.json"
    command = ["demo", "--seconds", "25", "--dir", str(tmp_path / "d"), "--json", str(result)]
    run = subprocess.run(
        [sys.executable, "-m", "livevalue", *command],
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    facts = json.loads(result.read_text())
    assert facts["events"] == 13_189
    # Of 20,000 and 4,300 on an idle machine; a busy one has not said all when the time is up.
    assert facts["updates"] > 2_000 and facts["users"] > 1_000
    assert facts["first_value_s"] < 60
    assert facts["generation_before"] == bundled().id
    assert facts["reason"] in run.stdout
    assert f"LIVEVALUE_DIR={tmp_path / 'd'} livevalue get ada" in run.stdout
    assert facts["hindsight"]["best_possible"] >= facts["hindsight"]["top_by_value"] > 0
    assert not (tmp_path / "d" / "stack.json").exists()
    left = subprocess.run(
        ["pgrep", "-f", str(tmp_path / "d")], capture_output=True, text=True, check=False
    )
    assert not left.stdout.strip(), left.stdout
