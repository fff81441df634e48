"""One or two workers on real Kafka and Valkey, seen from outside."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from livevalue.embedded import Stack
from tests.e2e.deployment import (
    Deployment,
    deployment_settings,
    send_all,
    some_events,
)

_databases = count(0)


@pytest.fixture
def deployment(stack: Stack, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    # Keys of a deployment begin with lv: so each test takes a Redis database of its own.
    url = stack.redis_url.rsplit("/", 1)[0] + f"/{1 + next(_databases) % 12}"
    settings = deployment_settings(stack.bootstrap, url, topic_prefix)
    with Deployment(settings, tmp_path) as made:
        yield made


def test_events_become_documents_that_are_equal_in_redis_and_on_scores(
    deployment: Deployment,
) -> None:
    send_all(deployment, list(some_events(3000, 100)))
    worker = deployment.start()
    deployment.settle()
    found = deployment.audit()
    assert found.clean, found
    assert (found.events, found.users) == (3000, 100)
    # And live: what comes later is folded too.
    send_all(deployment, list(some_events(500, 120, seed=2, first=3000)))
    deployment.settle()
    found = deployment.audit()
    assert found.clean, found
    assert found.events == 3500
    assert worker.stop() == 0


def test_sigterm_finishes_publishes_and_exits_0_and_a_restart_goes_on(
    deployment: Deployment,
) -> None:
    send_all(deployment, list(some_events(6000, 200)))
    worker = deployment.start()
    while not deployment.watermarks():
        time.sleep(0.02)
    assert worker.stop() == 0
    before = deployment.positions()
    for mark in deployment.watermarks().values():
        assert mark["published"] == f"{mark['seq']}:{mark['writer']}"
    deployment.start("w1")
    deployment.settle()
    found = deployment.audit()
    assert found.clean, found
    assert all(deployment.positions()[at] >= was for at, was in before.items())


def test_a_killed_worker_is_taken_over_and_nothing_is_lost_or_doubled(
    deployment: Deployment,
) -> None:
    events = list(some_events(6000, 200))
    send_all(deployment, events[:2000])
    first, second = deployment.start("w0"), deployment.start("w1")
    deployment.settle()
    send_all(deployment, events[2000:4000])
    first.kill()
    send_all(deployment, events[4000:])
    deployment.settle()
    found = deployment.audit()
    assert found.clean, found
    assert found.events == 6000
    second.signal(signal.SIGTERM)
    assert second.wait(30) == 0
