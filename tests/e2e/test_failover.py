"""A master of Redis dies under load and a replica takes its place: nothing lost, nothing twice.

Replication is asynchronous, so the replica may lack what the master had acknowledged; the tests
make sure that it does. To the worker that is a roll-back. `make failover` does the same for
longer; its result stands in docs/reliability.md.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from livevalue.embedded import Stack
from tests.e2e.deployment import deployment_settings
from tests.e2e.replicas import (
    One,
    cluster_set,
    fed,
    is_master,
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


def _kill_behind(deployment: OnReplicas, master: One, replica: One) -> None:
    """Kill a master that has acknowledged what its replica lacks, under load."""
    _cut(master, replica)
    deployment.load(_BEHIND)
    deployment.settle()  # and published: only then does the replica stand behind it
    master.kill()
    replica.process.send_signal(signal.SIGCONT)
    deployment.load(EVENTS // 2)


def _judge(deployment: OnReplicas, url: str) -> None:
    deployment.judge(f"{url.partition(':')[0]}: {ROUNDS} failovers")
    assert deployment.rolled_back(), "the replica had everything: nothing was proven"


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("f")


def test_a_sentinel_failover_under_load_loses_and_doubles_nothing(
    stack: Stack, topic_prefix: str, folder: Path
) -> None:
    with sentinel_set(folder) as servers:
        settings = deployment_settings(stack.bootstrap, servers.url, topic_prefix)
        with OnReplicas(settings, folder) as deployment:
            deployment.look(servers.client())
            deployment.start()
            deployment.load(EVENTS // 2)
            deployment.settle()
            for _ in range(ROUNDS):
                old, new = servers.pair()
                _kill_behind(deployment, old, new)
                wait_for(lambda new=new: servers.leads(new), 30)  # type: ignore[misc]
                deployment.look(servers.client())
                deployment.settle()
                servers.nodes.start(old.port, "--replicaof", "127.0.0.1", str(new.port))
                wait_for(lambda new=new: fed(new), 30)  # type: ignore[misc]
            _judge(deployment, servers.url)


def test_a_cluster_failover_under_load_loses_and_doubles_nothing(
    stack: Stack, topic_prefix: str, folder: Path
) -> None:
    with cluster_set(folder) as servers:
        settings = deployment_settings(stack.bootstrap, servers.url, topic_prefix)
        with OnReplicas(settings, folder) as deployment:
            deployment.look(servers.client())
            deployment.start()
            deployment.load(EVENTS // 2)
            deployment.settle()
            for at in range(ROUNDS):
                old, new = servers.pair(at % 2)
                _kill_behind(deployment, old, new)
                wait_for(lambda new=new: is_master(new), 30)  # type: ignore[misc]
                wait_for(lambda: bool(servers.client().ping()), 30)
                deployment.look(servers.client())
                deployment.settle()
                bus = servers.nodes.port()
                options = ["--cluster-enabled", "yes", "--cluster-port", str(bus)]
                servers.nodes.start(old.port, *options, "--cluster-node-timeout", "1500")
                wait_for(lambda new=new: fed(new), 30)  # type: ignore[misc]
            _judge(deployment, servers.url)
