"""Nothing is lost and nothing applied twice, whatever is killed meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.faults import Chaos, Scenario


@pytest.mark.timeout(400)
def test_20000_events_survive_six_kills_two_restarts_a_roll_back_and_a_broker_kill(
    tmp_path: Path,
) -> None:
    told: list[str] = []
    result = Chaos(Scenario(), tmp_path, told.append).run()
    assert result.audit.clean, (result.audit, told)
    assert result.audit.events == 20_000 and result.audit.users == 500
    assert result.done == {"kill": 6, "redis": 2, "rollback": 1, "broker": 1}
    assert result.undone > 0
