"""A master of Redis that its replicas and Sentinels no longer see, and that goes on all the same.

A replica takes its place, and for a while there are two: each takes writes of whoever still reaches
it. Once the old one hears of the other, it gives up what it has. To the commit protocol that is a
roll-back; docs/reliability.md has the result. Two ways to get there: the network between servers
breaks while workers reach them all, or the master stands still (SIGSTOP) past its failover and then
does first what had been asked of it before.

How the network breaks: Sentinels and replicas log in as users of their own, who are turned off; the
nodes of a cluster drop each packet of their bus (DEBUG DROP-CLUSTER-PACKET-FILTER).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from livevalue.embedded import Stack
from tests.e2e.deployment import deployment_settings
from tests.e2e.replicas import (
    One,
    SentinelSet,
    Wire,
    cluster_set,
    fed,
    is_master,
    replicas,
    sentinel_set,
    wait_for,
)
from tests.e2e.replicated import OnReplicas

pytestmark = pytest.mark.long

EVENTS = 600
_USERS = {
    "replica": "+psync +replconf +ping",
    "sentinel": "allchannels +multi +exec +ping +info +role +publish +subscribe +psubscribe "
    "+slaveof +replicaof +config|rewrite +client|setname +client|kill +script|kill",
}
_CLIENT = "on >secret ~* &* +@all"
_WIRE = Wire(
    node=(
        *("--user", "default", "off", "--user", "client", *_CLIENT.split()),
        *("--masteruser", "replica", "--masterauth", "secret", "--enable-debug-command", "yes"),
        *(
            word
            for name, rules in _USERS.items()
            for word in ("--user", name, "on", ">secret", *rules.split())
        ),
    ),
    client={"username": "client", "password": "secret"},
    login="client:secret@",
    sentinel=(f"user client {_CLIENT}",),
    watch=("sentinel auth-user {MASTER} sentinel", "sentinel auth-pass {MASTER} secret"),
)


def _cut(master: One) -> None:
    """From now on only clients get in."""
    client = master.client()
    for name in _USERS:
        client.acl_setuser(name, enabled=False)
        client.client_kill_filter(user=name)


def _mend(master: One) -> None:
    client = master.client()
    for name in _USERS:
        client.acl_setuser(name, enabled=True)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("f")


def _pair(servers: SentinelSet) -> tuple[One, One]:
    """Master and replica."""
    nodes, old = servers.nodes.running, servers.master()
    (new,) = {p for p in nodes if p not in servers.sentinels} - {old}
    return nodes[old], nodes[new]


def test_two_masters_at_once_by_sentinel_lose_and_double_nothing(
    stack: Stack, topic_prefix: str, folder: Path
) -> None:
    with sentinel_set(folder, _WIRE) as servers:
        settings = deployment_settings(stack.bootstrap, servers.url, topic_prefix)
        began = time.monotonic()
        with OnReplicas(settings, folder) as deployment:
            old, new = _pair(servers)
            deployment.look(old.client())
            first = deployment.start("w0")
            sent = deployment.load(0, EVENTS)
            deployment.settle()
            _cut(old)
            wait_for(lambda: servers.master() == new.port and is_master(new), 30)
            # The worker has no reason to leave the one that it reaches, and publishes from it.
            sent = deployment.load(sent, EVENTS)
            deployment.settle()
            assert is_master(old)
            assert first.exit_code is None and not first.lines("redis was rolled back")
            # Another worker asks the Sentinels, and takes a partition over from the other master.
            second = deployment.start("w1")
            wait_for(lambda: bool(second.lines("redis was rolled back")), 60)
            sent = deployment.load(sent, EVENTS)
            time.sleep(3.0)
            assert is_master(old) and is_master(new)
            _mend(old)
            wait_for(lambda: not is_master(old), 60)
            sent = deployment.load(sent, EVENTS)
            deployment.look(new.client())
            deployment.settle()
            assert first.lines("redis was rolled back")
            found = deployment.judge("redis+sentinel: two masters", began)
            assert found.records == sent


def test_a_master_cut_off_from_its_cluster_loses_and_doubles_nothing(
    stack: Stack, topic_prefix: str, folder: Path
) -> None:
    with cluster_set(folder, _WIRE) as servers:
        settings = deployment_settings(stack.bootstrap, servers.url, topic_prefix)
        began = time.monotonic()
        with OnReplicas(settings, folder) as deployment:
            deployment.look(servers.client())
            deployment.start()
            sent = deployment.load(0, EVENTS)
            deployment.settle()
            old = servers.owner("lv:{0}:seq")
            (new,) = replicas(servers.nodes.running, old)
            _cut(old)
            _bus(old, deaf=True)
            # Its own writes: until it has missed the others for as long as they have missed it.
            before = deployment.positions()
            sent = deployment.load(sent, 100)
            wait_for(lambda: deployment.positions() != before, 10)
            time.sleep(0.5)
            sent = deployment.load(sent, EVENTS)
            wait_for(lambda: is_master(new), 30)
            wait_for(lambda: _leads(servers.client, new), 30)
            deployment.look(servers.client())
            sent = deployment.load(sent, EVENTS)
            deployment.settle()
            assert is_master(old)
            _bus(old, deaf=False)
            _mend(old)
            wait_for(lambda: not is_master(old), 60)
            wait_for(lambda: fed(new), 30)
            sent = deployment.load(sent, EVENTS)
            deployment.settle()
            found = deployment.judge("redis+cluster: a master cut off", began)
            assert found.records == sent
            assert deployment.rolled_back(), "nothing was lost with the old master"


def _bus(one: One, *, deaf: bool) -> None:
    words = ["DEBUG", "DROP-CLUSTER-PACKET-FILTER", -2 if deaf else -1]
    one.client().execute_command(*words)  # type: ignore[no-untyped-call]


def _leads(client: Callable[[], object], one: One) -> bool:
    """Whether the cluster as a whole takes it for the owner of partition 0."""
    found = client()
    node = found.get_node_from_key("lv:{0}:seq")  # type: ignore[attr-defined]
    return bool(node is not None and node.port == one.port)


@pytest.mark.parametrize("way", ["sentinel", "cluster"])
def test_a_master_that_stood_still_past_its_failover_loses_and_doubles_nothing(
    stack: Stack, topic_prefix: str, folder: Path, way: str
) -> None:
    make = sentinel_set if way == "sentinel" else cluster_set
    with make(folder) as servers:
        settings = deployment_settings(stack.bootstrap, servers.url, topic_prefix)
        began = time.monotonic()
        with OnReplicas(settings, folder) as deployment:
            if isinstance(servers, SentinelSet):
                old, new = _pair(servers)
                deployment.look(old.client())
            else:
                old = servers.owner("lv:{0}:seq")
                (new,) = replicas(servers.nodes.running, old)
                deployment.look(servers.client())
            deployment.start()
            sent = deployment.load(0, EVENTS)
            deployment.settle()
            sent = deployment.load(sent, EVENTS)
            # Amid the load: what is asked of it now waits in its sockets.
            old.process.send_signal(signal.SIGSTOP)
            sent = deployment.load(sent, EVENTS)
            wait_for(lambda: is_master(new), 30)
            if isinstance(servers, SentinelSet):
                deployment.look(new.client())
            else:
                time.sleep(2.0)
                deployment.look(servers.client())
            deployment.settle()
            sent = deployment.load(sent, EVENTS)
            old.process.send_signal(signal.SIGCONT)
            wait_for(lambda: not is_master(old), 60)
            sent = deployment.load(sent, EVENTS)
            deployment.settle()
            found = deployment.judge(f"redis+{way}: a master that stood still", began)
            assert found.records == sent
