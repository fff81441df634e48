"""Each family that retrain can train, promoted under one and the same running worker."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

pytest.importorskip("torch", reason="torch is in the extra `train`")

from livevalue.embedded import Stack
from scoring.settings import TrainingSettings
from scoring.training.examples import Examples
from scoring.training.families import TAKES
from scoring.training.trainable import Ask, accepted, family
from tests.e2e.deployment import Deployment, WorkerProcess, send_all
from tests.parity.onstack import command, generations, serve, shaped, swept, verified
from tests.parity.playing import generation
from tests.parity.test_live_edges import DAYS, USERS, examples, expected, published, social_log

pytestmark = pytest.mark.long

# Of what trains a net the least that trains one; families without these are fitted in one go.
LEAST = {"width": 8, "epochs": 2, "least_orders": 20}


@dataclass(slots=True)
class Live:
    """A deployment with its one worker, and what may be learned from its log."""

    deployment: Deployment
    worker: WorkerProcess
    rows: Examples
    said: dict[str, float]  # by the documents, after the last promotion
    sent_days: int


@pytest.fixture(scope="module")
def live(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The first generation serves."""
    folder = tmp_path_factory.mktemp("families")
    settings = shaped(stack, f"families{os.getpid()}.", mixed=False, partitions=2)
    with Deployment(settings, folder) as deployment:
        serve(settings, generation())
        send_all(deployment, list(social_log(0, DAYS)))
        worker = deployment.start()
        deployment.settle()
        rows = examples(settings, folder / "log.jsonl")
        yield Live(deployment, worker, rows, expected(deployment), DAYS)
        assert worker.stop() == 0


@pytest.mark.parametrize("name", TAKES)
def test_a_promoted_family_is_served_by_the_worker_that_is_running(live: Live, name: str) -> None:
    deployment, settings = live.deployment, live.deployment.settings
    taken = {one: value for one, value in LEAST.items() if one in TAKES[name]}
    how = accepted(TrainingSettings(family=name, **taken))
    made = family(name).make(Ask(live.rows, settings.model.horizons_days, how)).whole
    assert made.manifest.family == name
    full = asyncio.run(published(settings, made))
    command(deployment, "promote", full[:12])
    swept(deployment, full)
    # more of the log while this generation serves
    send_all(deployment, list(social_log(live.sent_days, live.sent_days + 1)))
    live.sent_days += 1
    deployment.settle()
    found = verified(settings)
    assert (found["different"], found["users"]) == (0, USERS), found
    assert set(generations(deployment).values()) == {full[:12]}
    before, live.said = live.said, expected(deployment)
    assert len(live.said) == USERS
    assert before != live.said
    assert live.worker.exit_code is None
    assert not live.worker.lines("partition forgotten")
