"""Other settings of the fold: the worker names them and halts; a rebuild with them serves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from featurestore.settings import FeatureSettings
from livevalue.embedded import Stack
from livevalue.jobs.recovering import recover
from tests.e2e.deployment import Deployment, deployment_settings, send_all, some_events

_DATABASE = 15


@pytest.fixture
def deployment(stack: Stack, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    url = stack.redis_url.rsplit("/", 1)[0] + f"/{_DATABASE}"
    with Deployment(deployment_settings(stack.bootstrap, url, topic_prefix), tmp_path) as made:
        yield made


@pytest.mark.slow
def test_a_changed_setting_of_the_fold_is_named_and_a_rebuild_with_it_serves(
    deployment: Deployment,
) -> None:
    send_all(deployment, list(some_events(600, 40)))
    worker = deployment.start()
    deployment.settle()
    assert worker.stop() == 0

    features = FeatureSettings(lateness=timedelta(hours=5))
    deployment.settings = deployment.settings.model_copy(update={"features": features})
    refused = deployment.start("w1", LIVEVALUE_FEATURES__LATENESS="PT5H")
    assert refused.wait(60) == 1
    said = refused.lines("partition halted")[0]["error"]
    assert 'LIVEVALUE_FEATURES__LATENESS ("P3D" in the store, "PT5H" in the settings)' in said

    asyncio.run(recover(deployment.settings, "rebuild", dry_run=False))
    said = deployment.redis.get("lv:{0}:active")
    assert isinstance(said, bytes)
    serves = said.decode()
    assert serves != deployment.settings.store.name
    worker = deployment.start("w2", LIVEVALUE_FEATURES__LATENESS="PT5H")
    store = deployment.settings.store.model_copy(update={"name": serves})
    deployment.settings = deployment.settings.model_copy(update={"store": store})
    send_all(deployment, list(some_events(100, 40, seed=2, first=600)))
    deployment.settle()
    found = deployment.audit()
    assert found.clean, found
    assert found.events == 700
    assert worker.stop() == 0
