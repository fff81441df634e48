"""The topic of the values is lost under a worker: made again, or away. Nobody has to recover."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from livevalue.embedded import Stack
from tests.e2e.deployment import Deployment, send_all, some_events
from tests.e2e.losses import (
    admin,
    ended,
    last_scores,
    make_again,
    noticed,
    said_once_and_last,
    until,
)
from tests.parity.onstack import shaped

pytestmark = pytest.mark.long  # tests/streams/test_lost_values.py is the fast form


@pytest.fixture
def deployment(stack: Stack, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    settings = shaped(stack, topic_prefix, mixed=False, partitions=2)
    with Deployment(settings, tmp_path) as made:
        yield made


def everybody_is_said(deployment: Deployment, forgotten: str) -> bool:
    """As Redis has them; who was erased by a null."""
    last = last_scores(deployment)
    held = {
        key.decode().partition(":v:")[2]: deployment.redis.get(key)
        for key in deployment.redis.scan_iter("lv:{*}:v:*", count=1000)
    }
    return last == {**held, forgotten: None}


def test_values_on_a_topic_made_again_under_an_idle_worker_are_said_again(
    deployment: Deployment,
) -> None:
    send_all(deployment, list(some_events(600, 40)))
    for source in range(3):
        deployment.send_raw(source, b"u30", None)
    worker = deployment.start()
    deployment.settle()
    assert everybody_is_said(deployment, "u30") and len(last_scores(deployment)) == 40
    scores = deployment.settings.kafka.scores
    make_again(deployment, scores)
    made = datetime.now(UTC)
    until(lambda: everybody_is_said(deployment, "u30"), 20)
    lost = worker.lines("values on scores were lost, publishing every user again")
    assert sorted(line["partition"] for line in lost) == [0, 1]
    assert {line["why"] for line in lost} == {"the topic was made again"}
    noticed(lost, made)
    assert worker.exit_code is None

    # While it is away a worker ends; there again, the next one says everything.
    asked = admin(deployment)
    asked.delete_topics([scores])
    gone = datetime.now(UTC)
    asked.close()
    said = ended(worker)
    assert f"topic {scores} does not exist" in said
    assert "`livevalue topics --apply`, then start the worker, which publishes every user" in said
    noticed(worker.lines("giving up"), gone)
    assert json.loads(deployment.command("topics", "--apply", "--json", "-").stdout)
    send_all(deployment, list(some_events(20, 5, seed=2, first=600)))
    deployment.start("again")
    deployment.settle()
    until(lambda: everybody_is_said(deployment, "u30"), 20)
    said_once_and_last(deployment)
