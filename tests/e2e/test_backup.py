"""Redis from an old dump: to a worker a roll-back, which it makes good from the log."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import redis

from livevalue.embedded import Stack
from tests.contract.deployments import running, valkey
from tests.e2e.deployment import (
    Deployment,
    deployment_settings,
    send_all,
    some_events,
)

pytestmark = pytest.mark.long


@pytest.mark.parametrize("aof", ["no", "yes"])
def test_redis_restored_from_an_old_dump_loses_and_doubles_nothing(
    stack: Stack, topic_prefix: str, tmp_path_factory: pytest.TempPathFactory, aof: str
) -> None:
    folder = tmp_path_factory.mktemp("b")
    events = list(some_events(900, 40))
    with running(valkey(), folder, "--appendonly", aof) as lost:
        settings = deployment_settings(stack.bootstrap, lost.url, topic_prefix)
        with Deployment(settings, folder) as deployment:
            worker = deployment.start()
            send_all(deployment, events[:400])
            deployment.settle()
            deployment.redis.save()
            # What the dump does not know: published long since when it is put back.
            send_all(deployment, events[400:800])
            deployment.settle()
            assert worker.stop() == 0
    assert (folder / "dump.rdb").is_file()
    if aof == "yes":
        _from_dump(folder)
    with running(valkey(), folder, "--appendonly", aof) as restored:
        settings = deployment_settings(stack.bootstrap, restored.url, topic_prefix)
        with _Kept(settings, folder) as deployment:
            assert deployment.redis.dbsize() > 40
            worker = deployment.start("after")
            send_all(deployment, events[800:])
            deployment.settle()
            assert worker.stop() == 0
            assert worker.lines("redis was rolled back")
            found = deployment.audit()
            assert found.clean, found
            assert found.events == 900


def _from_dump(folder: Path) -> None:
    """As docs/operations.md says: a server with an AOF reads that and no dump."""
    shutil.move(folder / "appendonlydir", folder / "lost")
    with (
        running(valkey(), folder, "--appendonly", "no") as once,
        redis.Redis.from_url(once.url) as client,
    ):
        client.config_set("appendonly", "yes")
        until = time.monotonic() + 20
        while client.info("persistence")["aof_rewrite_in_progress"]:
            assert time.monotonic() < until
            time.sleep(0.1)


class _Kept(Deployment):
    """On servers as they are: nothing is flushed."""

    def __enter__(self) -> _Kept:
        self.redis = redis.Redis.from_url(self.settings.store.url.get_secret_value())
        self._producer = None
        return self
