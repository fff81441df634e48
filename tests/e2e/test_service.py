"""How long a partition goes unserved: each case once, by code and limits of `make service`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos.service import KINDS, measure


@pytest.mark.long
@pytest.mark.timeout(400)  # two minutes alone
def test_every_partition_is_served_again_in_time_after_a_kill_a_restart_and_a_minute_without_redis(
    tmp_path: Path,
) -> None:
    measured = measure(tmp_path, KINDS, times=1, outage_s=60.0, rate=150.0, say=print)
    assert measured.limits == {"kill": 6.0 + 3.0, "restart": 5.0, "outage": 5.0}
    assert measured.took.keys() == measured.limits.keys()
    assert not measured.too_long, measured.line()
    # Of the killed one nobody knows before its session is over: what it had was really unserved.
    assert measured.took["kill"][0] > 6.0 / 2
