"""Static membership: a worker that comes back soon under its name moves nobody's partitions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from livevalue.embedded import Stack
from tests.e2e.deployment import (
    Deployment,
    WorkerProcess,
    deployment_settings,
    send_all,
    some_events,
)

_DATABASE = 13  # the workers' tests take 1 to 12


@pytest.fixture
def deployment(stack: Stack, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    url = stack.redis_url.rsplit("/", 1)[0] + f"/{_DATABASE}"
    settings = deployment_settings(
        stack.bootstrap,
        url,
        topic_prefix,
        # Longer than a restart takes on a busy machine: else the group gives the member up.
        kafka={"session_timeout_s": 25.0},
    )
    with Deployment(settings, tmp_path) as made:
        yield made


def until(what: Callable[[], bool], patience_s: float = 30.0) -> None:
    end = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < end, f"waited {patience_s} s in vain"
        time.sleep(0.05)


def partitions(worker: WorkerProcess) -> list[int]:
    """What the worker was assigned last."""
    said = worker.lines("assigned")
    return said[-1]["partitions"] if said else []


def heeds_sigterm(worker: WorkerProcess) -> bool:
    """Whether it has come so far as to catch the signal; before, it just ends."""
    status = Path(f"/proc/{worker._process.pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> 14 & 1)


@pytest.mark.parametrize("after_s", [0.0, 0.5])
def test_a_worker_that_is_stopped_while_it_joins_leaves_the_group(
    deployment: Deployment, after_s: float
) -> None:
    events = list(some_events(600, 60))
    send_all(deployment, events[:300])
    staying = deployment.start("w0")
    until(lambda: partitions(staying) == [0, 1])
    deployment.settle()
    joining = deployment.start("w1")
    until(lambda: heeds_sigterm(joining))
    time.sleep(after_s)
    assert joining.stop() == 0
    until(lambda: partitions(staying) == [0, 1], 10)  # a member that is gone is kept for 25 s
    send_all(deployment, events[300:])
    deployment.settle()
    assert deployment.audit().clean


@pytest.mark.slow
def test_a_worker_back_under_its_instance_id_moves_nothing_of_the_other(
    deployment: Deployment,
) -> None:
    events = list(some_events(900, 60))
    send_all(deployment, events[:300])
    leaving = deployment.start("w0", LIVEVALUE_KAFKA__INSTANCE_ID="first")
    staying = deployment.start("w1", LIVEVALUE_KAFKA__INSTANCE_ID="second")
    # Claimed, too: whoever had both before may have folded all that there is.
    until(lambda: sorted([leaving.serves(), staying.serves()]) == [[0], [1]])
    deployment.settle()
    held = partitions(leaving)
    before = {what: staying.lines(what) for what in ("assigned", "partition claimed")}

    assert leaving.stop() == 0
    send_all(deployment, events[300:600])
    back = deployment.start("w2", LIVEVALUE_KAFKA__INSTANCE_ID="first")
    until(lambda: partitions(back) == held)
    send_all(deployment, events[600:])
    deployment.settle()

    assert {what: staying.lines(what) for what in before} == before
    found = deployment.audit()
    assert found.clean, found
    assert found.events == 900
    assert staying.exit_code is None and back.exit_code is None
