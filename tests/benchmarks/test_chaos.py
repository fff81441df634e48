"""The parts of `make chaos` that need no servers; the whole is tests/e2e/test_faults.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from itertools import islice
from typing import Any

import pytest

from benchmarks.chaos import load, report
from benchmarks.chaos.found import Audit
from benchmarks.chaos.runner import LONG, Result, Scenario
from benchmarks.chaos.service import Measured, tell
from streams.settings import KafkaSettings

KAFKA = KafkaSettings(partitions=4, max_record_bytes=load.MAX_RECORD_BYTES)


def result(
    done: Counter[str] | None = None, in_vain: Counter[str] | None = None, **found: Any
) -> Result:
    return Result(
        Scenario(seed=7, faults=LONG),
        Audit(**found),
        different=0,
        done=Counter(LONG) if done is None else done,
        in_vain=in_vain or Counter(),
        undone=[1200],
        coordinators=1,
        restarts=0,
        sent=Counter(),
        feed_s=1.0,
        settle_s=1.0,
    )


def test_the_load_holds_every_kind_of_message_in_its_share() -> None:
    messages = list(islice(load.messages(500, 1, KAFKA), 20_000))
    kinds = Counter(message.kind for message in messages)
    assert kinds.keys() == {"plain", "erasure", *load.MIX}
    for kind, share in load.MIX.items():
        assert 0.7 * share < kinds[kind] / len(messages) < 1.3 * share
    events = [message for message in messages if isinstance(message, load.Message)]
    assert {message.source for message in events} == {0, 1, 2}


def test_the_load_is_the_same_for_the_same_seed_only() -> None:
    one, same, other = (list(islice(load.messages(9, s, KAFKA), 300)) for s in (1, 1, 2))
    assert one == same != other


def test_any_count_that_must_be_zero_makes_a_run_unclean() -> None:
    assert result().clean
    for name in Audit().faults():
        found: dict[str, Any] = {name: 1}
        assert not result(**found).clean


def test_a_fault_that_was_in_vain_is_shown_apart_and_one_short_makes_a_run_unclean() -> None:
    tried = result(in_vain=Counter(rollback=2))
    assert tried.clean and "4 rollback, 4 broker (in vain: 2 rollback)" in report.row(tried)
    short = result(done=Counter(LONG) - Counter(rollback=1))
    assert not short.clean and short.not_done == {"rollback": 1}
    assert short.line()["faults_not_done"] == 1


def test_the_line_begins_with_the_promised_fields_and_counts_faults_that_kill() -> None:
    line = result(records=200_000, lost=2).line()
    assert list(line)[:6] == [
        *("events", "kills", "lost", "applied_twice", "outputs_missing", "outputs_twice")
    ]
    assert (line["events"], line["kills"], line["lost"]) == (200_000, 41, 2)


def test_a_row_has_a_cell_for_each_column_and_names_every_fault() -> None:
    row = report.row(result(records=200_000))
    assert row.count("|") == report.header().splitlines()[0].count("|")
    for said in ("24 kill", "4 zombie", "5 redis", "4 rollback", "4 broker", "1,200"):
        assert said in row


def test_an_unknown_fault_is_refused_with_the_names_of_those_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", "--faults", "flood=1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "'flood' is none of kill, zombie, redis" in done.stderr


def test_a_partition_unserved_for_longer_than_it_may_be_is_named_and_ends_with_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    took = {"kill": [7.4, 9.0], "restart": [2.0, 5.0], "outage": [5.0]}
    assert tell(Measured(6.0, took)) == 0
    assert json.loads(capsys.readouterr().out) == took | {"session_timeout_s": 6.0, "well": True}
    for kind, most in (("kill", 9), ("restart", 5), ("outage", 5)):
        assert tell(Measured(6.0, took | {kind: [most + 0.01, 1.0]})) == 1
        said, line = capsys.readouterr().out.splitlines()
        assert said == f"TOO LONG: {kind} took {most}.01 s, limit {most} s"
        assert json.loads(line)["well"] is False
