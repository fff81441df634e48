"""Slots of a cluster move to another node under load: nothing lost, nothing twice, nothing unread.

Key by key (CLUSTER SETSLOT and MIGRATE, what `--cluster reshard` does), a commit meets TRYAGAIN and
ASK and waits, while readers find each key where it is; at once (Valkey's CLUSTER MIGRATESLOTS), it
meets MOVED. docs/reliability.md has the result.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from featurestore.backends.nodes import slot
from featurestore.backends.redis import RedisStore
from featurestore.errors import StoreUnavailable
from livevalue.client import ValueClient
from livevalue.embedded import Stack
from tests.e2e.deployment import deployment_settings
from tests.e2e.replicas import ClusterSet, One, cluster_set, is_master, wait_for
from tests.e2e.replicated import USERS, OnReplicas

pytestmark = pytest.mark.long

EVENTS = 1500
_PAGE = 5  # keys that leave at a time


def _say(one: One, *words: Any) -> Any:
    return one.client().execute_command(*words)  # type: ignore[no-untyped-call]


class Move:
    """The slot of one partition, from its owner to another master."""

    def __init__(self, servers: ClusterSet, partition: int) -> None:
        nodes = servers.nodes.running
        self._servers = servers
        self.tag = f"{{{partition}}}"
        self.slot = slot(self.tag.encode())
        self.source = servers.owner(f"lv:{self.tag}:seq")
        self._masters = [one for one in nodes.values() if is_master(one)]
        self.target = next(one for one in self._masters if one is not self.source)
        self._names = {one.port: _say(one, "CLUSTER", "MYID").decode() for one in self._masters}

    def begin(self) -> None:
        there, here = self._names[self.target.port], self._names[self.source.port]
        _say(self.target, "CLUSTER", "SETSLOT", self.slot, "IMPORTING", here)
        _say(self.source, "CLUSTER", "SETSLOT", self.slot, "MIGRATING", there)

    def left(self, most: int = 100_000) -> list[bytes]:
        """Some that have not left."""
        found: list[bytes] = _say(self.source, "CLUSTER", "GETKEYSINSLOT", self.slot, most)
        return found

    def leave(self, pages: int = 0, pause_s: float = 0.0) -> None:
        """So many pages of keys leave; all where no number is given."""
        to = ["MIGRATE", self.source.wire.host, self.target.port, "", 0, 5000, "KEYS"]
        number = 0
        while (not pages or number < pages) and (found := self.left(_PAGE)):
            _say(self.source, *to, *found)
            number += 1
            time.sleep(pause_s)

    def end(self) -> None:
        there = self._names[self.target.port]
        others = [one for one in self._masters if one not in (self.target, self.source)]
        for one in (self.target, self.source, *others):
            _say(one, "CLUSTER", "SETSLOT", self.slot, "NODE", there)

    def at_once(self) -> None:
        """Valkey copies the slot beside its use, and hands it over whole."""
        there = self._names[self.target.port]
        words = ["SLOTSRANGE", self.slot, self.slot, "NODE", there]
        _say(self.source, "CLUSTER", "MIGRATESLOTS", *words)

        wait_for(lambda: self._servers.owner(f"lv:{self.tag}:seq") is self.target, 30.0)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("f")


class Steady:
    """Events at a steady rate from a thread, while something else goes on."""

    def __init__(self, deployment: OnReplicas) -> None:
        self._deployment, self._over = deployment, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._over.wait(0.1):
            self._deployment.load(30)


def test_slots_that_move_key_by_key_and_at_once_lose_and_double_nothing(
    stack: Stack, topic_prefix: str, folder: Path
) -> None:
    with cluster_set(folder) as servers:
        settings = deployment_settings(stack.bootstrap, servers.url, topic_prefix)
        with OnReplicas(settings, folder) as deployment:
            deployment.look(servers.client())
            deployment.start()
            deployment.load(EVENTS // 2)
            deployment.settle()
            for partition in (0, 1):
                with Steady(deployment):
                    move = Move(servers, partition)
                    move.begin()
                    move.leave(pages=len(move.left()) // _PAGE // 2, pause_s=0.05)
                    time.sleep(1.0)
                    _look(deployment, move, partition)
                    move.leave(pause_s=0.02)
                    time.sleep(1.0)  # all are there, and the slot is not
                    move.end()
                    time.sleep(3.0)
                    back = Move(servers, partition)
                    assert back.source is move.target
                    back.at_once()
                    time.sleep(2.0)
                deployment.look(servers.client())
                deployment.settle()
            deployment.judge("redis+cluster: 4 slots moved")
            assert deployment.rolled_back() == 0


def _look(deployment: OnReplicas, move: Move, partition: int) -> None:
    """Amid the move every value is read, and no walk takes what it sees for everything."""
    head = f"lv:{move.tag}:v:".encode()
    left = {key[len(head) :].decode() for key in move.left() if key.startswith(head)}
    held = [f"u{n}" for n in range(USERS)]
    with ValueClient.connect(deployment.settings) as values:
        read = {user: values.get(user) for user in held}
    assert all(read.values())
    ours = {user for user in held if user in left}
    assert ours and len(ours) < len(held)

    async def walk() -> None:
        store = RedisStore(deployment.settings.store)
        try:
            with pytest.raises(StoreUnavailable, match="moves this partition's slot"):
                await store.scan(partition, "", 1000)
        finally:
            await store.close()

    asyncio.run(walk())
