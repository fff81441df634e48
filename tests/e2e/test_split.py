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


def test_two_masters_at_once_by_sentinel_lose_and_double_nothing(
    stack: Stack, topic_prefix: str, folder: Path
) -> None:
    with sentinel_set(folder, _WIRE) as servers:
        settings = deployment_settings(stack.bootstrap, servers.url, topic_prefix)
        with OnReplicas(settings, folder) as deployment:
            old, new = servers.pair()
            deployment.look(servers.client())
            first = deployment.start("w0")
            deployment.load(EVENTS)
            deployment.settle()
            _cut(old)
            wait_for(lambda: servers.leads(new) and is_master(new), 30)
            # The worker has no reason to leave the one that it reaches, and publishes from it.
            deployment.load(EVENTS)
            deployment.settle()
            assert is_master(old)
            assert first.exit_code is None and not first.lines("redis was rolled back")
            # Another worker asks the Sentinels, and takes a partition over from the other master.
            second = deployment.start("w1")
            wait_for(lambda: bool(second.lines("redis was rolled back")), 60)
            deployment.load(EVENTS)
            time.sleep(3.0)
            assert is_master(old) and is_master(new)
            _mend(old)
            wait_for(lambda: not is_master(old), 60)
            deployment.load(EVENTS)
            deployment.look(new.client())
            deployment.settle()
            assert first.lines("redis was rolled back")
            deployment.judge("redis+sentinel: two masters")


def test_a_master_cut_off_from_its_cluster_loses_and_doubles_nothing(
    stack: Stack, topic_prefix: str, folder: Path
) -> None:
    with cluster_set(folder, _WIRE) as servers:
        settings = deployment_settings(stack.bootstrap, servers.url, topic_prefix)
        with OnReplicas(settings, folder) as deployment:
            deployment.look(servers.client())
            deployment.start()
            deployment.load(EVENTS)
            deployment.settle()
            old, new = servers.pair()
            _cut(old)
            _bus(old, deaf=True)
            # Its own writes: until it has missed the others for as long as they have missed it.
            before = deployment.positions()
            deployment.load(100)
            wait_for(lambda: deployment.positions() != before, 10)
            time.sleep(0.5)
            deployment.load(EVENTS)
            wait_for(lambda: is_master(new), 30)
            wait_for(lambda: servers.leads(new), 30)
            deployment.look(servers.client())
            deployment.load(EVENTS)
            deployment.settle()
            assert is_master(old)
            _bus(old, deaf=False)
            _mend(old)
            wait_for(lambda: not is_master(old), 60)
            wait_for(lambda: fed(new), 30)
            deployment.load(EVENTS)
            deployment.settle()
            deployment.judge("redis+cluster: a master cut off")
            assert deployment.rolled_back(), "nothing was lost with the old master"


def _bus(one: One, *, deaf: bool) -> None:
    words = ["DEBUG", "DROP-CLUSTER-PACKET-FILTER", -2 if deaf else -1]
    one.client().execute_command(*words)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("way", ["sentinel", "cluster"])
def test_a_master_that_stood_still_past_its_failover_loses_and_doubles_nothing(
    stack: Stack, topic_prefix: str, folder: Path, way: str
) -> None:
    make = sentinel_set if way == "sentinel" else cluster_set
    with make(folder) as servers:
        settings = deployment_settings(stack.bootstrap, servers.url, topic_prefix)
        with OnReplicas(settings, folder) as deployment:
            old, new = servers.pair()
            deployment.look(servers.client())
            deployment.start()
            deployment.load(EVENTS)
            deployment.settle()
            deployment.load(EVENTS)
            # Amid the load: what is asked of it now waits in its sockets.
            old.process.send_signal(signal.SIGSTOP)
            deployment.load(EVENTS)
            wait_for(lambda: is_master(new), 30)
            if isinstance(servers, SentinelSet):
                deployment.look(new.client())
            else:
                time.sleep(2.0)
                deployment.look(servers.client())
            deployment.settle()
            deployment.load(EVENTS)
            old.process.send_signal(signal.SIGCONT)
            wait_for(lambda: not is_master(old), 60)
            deployment.load(EVENTS)
            deployment.settle()
            deployment.judge(f"redis+{way}: a master that stood still")
