"""A worker that dies at a named point of the protocol loses nothing and doubles nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from livevalue.embedded import Stack
from streams.crashpoints import POINTS, VARIABLE
from tests.e2e.crashes import Crashes, crash_settings
from tests.e2e.deployment import ROOT, Deployment

_DATABASE = 15  # the other tests of this folder take 1 to 14


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_worker_that_dies_once_at_every_named_point_leaves_everything_exact(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    url = stack.redis_url.rsplit("/", 1)[0] + f"/{_DATABASE}"
    settings = crash_settings(stack.bootstrap, url, topic_prefix)
    with Deployment(settings, tmp_path) as deployment:
        crashes = Crashes(deployment)
        try:
            for point in POINTS:  # a crash on the way back from the crash before
                crashes.crash(point)
            assert crashes.exact() == []
        finally:
            crashes.close()


def test_every_named_point_is_a_place_in_the_code_and_every_place_has_a_name() -> None:
    found = set()
    for path in (ROOT / "streams").glob("*.py"):
        found |= set(re.findall(r'crashpoints\.passing\("(\w+)"\)', path.read_text()))
    assert found == set(POINTS)


def test_a_worker_says_that_it_is_armed_and_refuses_a_point_that_there_is_not(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    url = stack.redis_url.rsplit("/", 1)[0] + f"/{_DATABASE}"
    with Deployment(crash_settings(stack.bootstrap, url, topic_prefix), tmp_path) as deployment:
        refused = deployment.start("refused", **{VARIABLE: "nowhere:1"})
        assert refused.wait(60) == 1
        said = refused.log.read_text()
        assert f"livevalue: {VARIABLE}='nowhere:1': unset it, or name one of after_load" in said
        armed = deployment.start("armed", **{VARIABLE: "claim_token:1"})
        assert armed.wait(60) == -9
        (warned,) = armed.lines("armed to crash")
        assert warned["level"] == "warning" and warned["point"] == "claim_token:1"
