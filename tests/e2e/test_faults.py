"""Nothing is lost, doubled or unsaid, whatever is killed meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos.faults import KINDS, UNDONE
from benchmarks.chaos.runner import SHORT, Scenario, run


@pytest.mark.timeout(240)  # what CI may take for it
def test_20000_events_survive_six_kills_two_restarts_a_roll_back_and_a_broker_kill(
    tmp_path: Path,
) -> None:
    told: list[str] = []
    result = run(Scenario(seed=1, rate=600, pause_s=(0.5, 1.5), forks=True), tmp_path, told.append)
    found = result.audit
    assert result.clean, (found, result.different, told)
    # Eight are erased at a time; who of the last eight did nothing since is nobody.
    assert found.records >= 20_000 and 492 <= found.users <= 500
    assert result.done == SHORT == {"kill": 6, "redis": 2, "rollback": 1, "broker": 1}
    assert result.undone[0] >= UNDONE == 1_000
    # The load held what the audit is about.
    assert result.sent["aborted"] and result.sent["late"] and found.letters > 300
    assert list(result.line())[:6] == [
        *("events", "kills", "lost", "applied_twice", "outputs_missing", "outputs_twice")
    ]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_kind_of_fault_has_its_effect_and_is_survived(tmp_path: Path) -> None:
    told: list[str] = []
    once = dict.fromkeys(KINDS, 1)
    scenario = Scenario(
        *(3_000, 300), seed=31, rate=150, faults=once, pause_s=(0.5, 1.5), deaf_s=15, forks=True
    )
    result = run(scenario, tmp_path, told.append)
    assert result.clean, (result.audit, result.different, told)
    assert result.done == once
