"""A real Valkey comes back with older files under a worker: while idle, behind equal positions in a
sweep, and where the outbox is full at once. tests/streams/test_partition.py has them in memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from livevalue.embedded import Stack
from livevalue.embedded.valkey import Valkey
from livevalue.jobs.storing import backfill, flip
from livevalue.sources import FileOptions
from tests.e2e.deployment import Deployment, deployment_settings, send_all, some_events
from tests.e2e.losses import until

pytestmark = pytest.mark.long

PARTITIONS = 2
USERS = 40


class Undone:
    """A deployment, and its Valkey whose files are kept and put back."""

    def __init__(self, deployment: Deployment, valkey: Valkey, folder: Path) -> None:
        self.deployment = deployment
        self._valkey = valkey
        self._old = folder / "old"
        self._events = iter(some_events(10**6, USERS))
        self._kept: list[dict[int, int]] = []  # the commits up to which each roll-back undid
        self.worker = deployment.start()

    def send(self, count: int) -> None:
        send_all(self.deployment, list(islice(self._events, count)))

    def keep(self) -> None:
        """Copy the files of this moment, at which everything is published."""
        self.deployment.settle()
        self._kept.append({p: int(m["seq"]) for p, m in self.deployment.watermarks().items()})
        os.kill(self._valkey.pid, signal.SIGSTOP)
        shutil.copytree(self._valkey.data, self._old)
        os.kill(self._valkey.pid, signal.SIGCONT)

    def roll_back(self, *, unseen: bool = False) -> None:
        """Valkey dies and comes back with the files that were kept.

        unseen: while the worker is stopped, so that it always finds a Valkey that answers.
        """
        self._before = {what: len(self.worker.lines(what)) for what in (_SEEN, _MADE_GOOD)}
        if unseen:
            self.worker.signal(signal.SIGSTOP)
        self._valkey.kill()
        shutil.rmtree(self._valkey.data)
        self._old.rename(self._valkey.data)
        self._valkey.start()
        if unseen:
            self.worker.signal(signal.SIGCONT)

    def made_good(self) -> dict[int, dict[str, Any]]:
        """Each partition saw it and made it good, and all is exact; -> how it was seen first."""
        until(lambda: len(self._since(_MADE_GOOD)) == PARTITIONS, 30.0)
        self.deployment.settle()
        found = self.deployment.audit(self._kept)
        assert found.clean, found
        assert found.events == found.records == self.deployment.sent
        assert self.worker.exit_code is None and not self.worker.lines("partition halted")
        return self._since(_SEEN)

    def _since(self, what: str) -> dict[int, dict[str, Any]]:
        """The first such line of each partition since the roll-back."""
        lines = self.worker.lines(what)[self._before[what] :]
        return {line["partition"]: line for line in reversed(lines)}


_SEEN, _MADE_GOOD = "redis was rolled back", "roll-back made good"


@pytest.fixture
def undone(stack: Stack, topic_prefix: str, tmp_path: Path) -> Iterator[Undone]:
    """One worker, on a Valkey of its own."""
    with Stack.started(tmp_path / "own", bootstrap=stack.bootstrap) as own:
        assert own.valkey is not None
        settings = deployment_settings(
            stack.bootstrap,
            own.redis_url,
            topic_prefix,
            partitions=PARTITIONS,
            worker={"outbox_users": 10, "batch": 20},
        )
        with Deployment(settings, tmp_path) as deployment:
            yield Undone(deployment, own.valkey, tmp_path)


def test_a_roll_back_while_nothing_arrives_is_noticed_and_mended(undone: Undone) -> None:
    undone.send(100)
    undone.keep()
    # Many commits, that are not done again one by one: revisions must not come twice.
    for _ in range(5):
        undone.send(30)
        undone.deployment.settle()
    undone.roll_back(unseen=True)  # nothing but the look every few seconds can tell
    seen = undone.made_good()
    for line in seen.values():
        assert sum(line["store_positions"]) < sum(line["published_positions"])


def test_a_rolled_back_flip_and_sweep_is_noticed_behind_equal_positions(undone: Undone) -> None:
    deployment = undone.deployment
    undone.send(100)
    deployment.settle()
    asyncio.run(backfill(deployment.settings, ["kafka"], "aside", None, FileOptions(), jobs=1))
    undone.keep()
    asyncio.run(flip(deployment.settings, "aside", lambda _: None))
    until(lambda: all(_swept(m) for m in deployment.watermarks().values()), 30.0)
    deployment.settle()
    undone.roll_back()
    seen = undone.made_good()
    for line in seen.values():
        assert line["store_positions"] == line["published_positions"]
        assert line["store_seq"] < line["published_seq"]
    assert {deployment.redis.get(f"lv:{{{p}}}:active") for p in range(PARTITIONS)} == {b"main"}


def _swept(mark: dict[str, Any]) -> bool:
    return bool(mark.get("progress")) and json.loads(mark["progress"])["sweep"] is None


def test_a_roll_back_of_more_than_the_outbox_may_name_is_mended(undone: Undone) -> None:
    undone.send(100)
    undone.keep()
    undone.send(600)
    undone.deployment.settle()
    undone.roll_back()
    undone.send(40)
    undone.made_good()
