"""A master of Redis dies under load and a replica takes its place: nothing lost, nothing twice.

Replication is asynchronous, so the replica may lack what the master had acknowledged; the tests
make sure that it does. To the worker that is a roll-back. `make failover` does the same for
longer; its result stands in docs/reliability.md.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from livevalue.client import ValueClient
from livevalue.embedded import Stack
from streams import topics
from tests.e2e.deployment import Deployment, deployment_settings, send_all, some_events
from tests.e2e.replicas import One, cluster_set, replicas_of, sentinel_set, wait_for

pytestmark = pytest.mark.long

# Rounds of a kill each, and events between two; `make failover` sets more.
ROUNDS = int(os.environ.get("LIVEVALUE_FAILOVERS", "1"))
EVENTS = int(os.environ.get("LIVEVALUE_FAILOVER_EVENTS", "1500"))
_BEHIND = 200  # events that the master has taken and its replica has not


class OnReplicas(Deployment):
    """A deployment whose Redis is not one server; `look` connects to whoever holds it now."""

    def __enter__(self) -> OnReplicas:
        topics.apply(self.settings)
        self._producer = None
        self.redis: Any = None
        return self

    def look(self, client: Any) -> None:
        if self.redis is not None:
            self.redis.close()
        self.redis = client


def _cut(master: One, replica: One) -> None:
    """Let the replica fall behind: stopped, and cut off, since sockets would keep all for it."""
    replica.process.send_signal(signal.SIGSTOP)
    master.client().client_kill_filter(_type="replica")


def _load(deployment: OnReplicas, first: int, count: int) -> int:
    send_all(deployment, list(some_events(count, 80, first=first)))
    return first + count


def _kill_behind(deployment: OnReplicas, master: One, replica: One, first: int) -> int:
    """Kill a master that has acknowledged what its replica lacks, under load; -> events so far."""
    _cut(master, replica)
    first = _load(deployment, first, _BEHIND)
    deployment.settle()  # and published: only then does the replica stand behind it
    master.kill()
    replica.process.send_signal(signal.SIGCONT)
    return _load(deployment, first, EVENTS // 2)


def _judge(deployment: OnReplicas, url: str, rounds: int, began: float) -> None:
    worker = deployment.workers["w0"]
    assert worker.exit_code is None, worker.log.read_text()[-2000:]
    assert not worker.lines("partition halted")
    with ValueClient.connect(deployment.settings) as values:
        assert len(values.top(10)) == 10
        assert values.get("u1") is not None
    assert worker.stop() == 0
    found = deployment.audit()
    backs = len(worker.lines("redis was rolled back"))
    seconds = time.monotonic() - began
    print(
        f"{url.partition(':')[0]}: {rounds} failovers, {backs} roll-backs, {seconds:.0f} s, {found}"
    )
    assert found.clean, found
    assert found.outputs_twice == 0
    assert backs, "the replica had everything: nothing was proven"


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("f")


def test_a_sentinel_failover_under_load_loses_and_doubles_nothing(
    stack: Stack, topic_prefix: str, folder: Path
) -> None:
    with sentinel_set(folder) as servers:
        settings = deployment_settings(stack.bootstrap, servers.url, topic_prefix)
        nodes = servers.nodes.running
        began = time.monotonic()
        with OnReplicas(settings, folder) as deployment:
            deployment.look(nodes[servers.master()].client())
            deployment.start()
            sent = _load(deployment, 0, EVENTS // 2)
            deployment.settle()
            for _ in range(ROUNDS):
                old = servers.master()
                (new,) = {p for p in nodes if p not in servers.sentinels} - {old}
                sent = _kill_behind(deployment, nodes[old], nodes[new], sent)
                wait_for(lambda new=new: servers.master() == new, 30)  # type: ignore[misc]
                deployment.look(nodes[new].client())
                deployment.settle()
                servers.nodes.start(old, "--replicaof", "127.0.0.1", str(new))
                wait_for(lambda new=new: _fed(nodes[new]), 30)  # type: ignore[misc]
            _judge(deployment, servers.url, ROUNDS, began)


def _fed(one: One) -> bool:
    return replicas_of(one) == 1


def test_a_cluster_failover_under_load_loses_and_doubles_nothing(
    stack: Stack, topic_prefix: str, folder: Path
) -> None:
    with cluster_set(folder) as servers:
        settings = deployment_settings(stack.bootstrap, servers.url, topic_prefix)
        began = time.monotonic()
        with OnReplicas(settings, folder) as deployment:
            deployment.look(servers.client())
            deployment.start()
            sent = _load(deployment, 0, EVENTS // 2)
            deployment.settle()
            for at in range(ROUNDS):
                old = servers.owner(f"lv:{{{at % 2}}}:seq")
                (new,) = _replicas(servers.nodes.running, old)
                sent = _kill_behind(deployment, old, new, sent)
                wait_for(lambda new=new: _is_master(new), 30)  # type: ignore[misc]
                wait_for(lambda: bool(servers.client().ping()), 30)
                deployment.look(servers.client())
                deployment.settle()
                bus = servers.nodes.port()
                options = ["--cluster-enabled", "yes", "--cluster-port", str(bus)]
                servers.nodes.start(old.port, *options, "--cluster-node-timeout", "1500")
                wait_for(lambda new=new: _fed(new), 30)  # type: ignore[misc]
            _judge(deployment, servers.url, ROUNDS, began)


def _is_master(one: One) -> bool:
    state: Any = one.client().info("replication")
    return bool(state["role"] == "master")


def _replicas(nodes: dict[int, One], master: One) -> list[One]:
    state: Any = master.client().info("replication")
    ports = [
        int(v["port"]) for n, v in state.items() if n.startswith("slave") and isinstance(v, dict)
    ]
    return [nodes[port] for port in ports]
