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

import pytest

from livevalue.embedded import Stack
from tests.e2e.deployment import deployment_settings
from tests.e2e.replicas import (
    One,
    cluster_set,
    fed,
    is_master,
    replicas,
    sentinel_set,
    wait_for,
)
from tests.e2e.replicated import OnReplicas

pytestmark = pytest.mark.long

# Rounds of a kill each, and events between two; `make failover` sets more.
ROUNDS = int(os.environ.get("LIVEVALUE_FAILOVERS", "1"))
EVENTS = int(os.environ.get("LIVEVALUE_FAILOVER_EVENTS", "1500"))
_BEHIND = 200  # events that the master has taken and its replica has not


def _cut(master: One, replica: One) -> None:
    """Let the replica fall behind: stopped, and cut off, since sockets would keep all for it."""
    replica.process.send_signal(signal.SIGSTOP)
    master.client().client_kill_filter(_type="replica")


def _kill_behind(deployment: OnReplicas, master: One, replica: One, first: int) -> int:
    """Kill a master that has acknowledged what its replica lacks, under load; -> events so far."""
    _cut(master, replica)
    first = deployment.load(first, _BEHIND)
    deployment.settle()  # and published: only then does the replica stand behind it
    master.kill()
    replica.process.send_signal(signal.SIGCONT)
    return deployment.load(first, EVENTS // 2)


def _judge(deployment: OnReplicas, url: str, began: float) -> None:
    deployment.judge(f"{url.partition(':')[0]}: {ROUNDS} failovers", began)
    assert deployment.rolled_back(), "the replica had everything: nothing was proven"


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
            sent = deployment.load(0, EVENTS // 2)
            deployment.settle()
            for _ in range(ROUNDS):
                old = servers.master()
                (new,) = {p for p in nodes if p not in servers.sentinels} - {old}
                sent = _kill_behind(deployment, nodes[old], nodes[new], sent)
                wait_for(lambda new=new: servers.master() == new, 30)  # type: ignore[misc]
                deployment.look(nodes[new].client())
                deployment.settle()
                servers.nodes.start(old, "--replicaof", "127.0.0.1", str(new))
                wait_for(lambda new=new: fed(nodes[new]), 30)  # type: ignore[misc]
            _judge(deployment, servers.url, began)


def test_a_cluster_failover_under_load_loses_and_doubles_nothing(
    stack: Stack, topic_prefix: str, folder: Path
) -> None:
    with cluster_set(folder) as servers:
        settings = deployment_settings(stack.bootstrap, servers.url, topic_prefix)
        began = time.monotonic()
        with OnReplicas(settings, folder) as deployment:
            deployment.look(servers.client())
            deployment.start()
            sent = deployment.load(0, EVENTS // 2)
            deployment.settle()
            for at in range(ROUNDS):
                old = servers.owner(f"lv:{{{at % 2}}}:seq")
                (new,) = replicas(servers.nodes.running, old)
                sent = _kill_behind(deployment, old, new, sent)
                wait_for(lambda new=new: is_master(new), 30)  # type: ignore[misc]
                wait_for(lambda: bool(servers.client().ping()), 30)
                deployment.look(servers.client())
                deployment.settle()
                bus = servers.nodes.port()
                options = ["--cluster-enabled", "yes", "--cluster-port", str(bus)]
                servers.nodes.start(old.port, *options, "--cluster-node-timeout", "1500")
                wait_for(lambda new=new: fed(new), 30)  # type: ignore[misc]
            _judge(deployment, servers.url, began)
