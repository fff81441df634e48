"""Sentinels and a cluster behind TLS and logins: a worker of the sample accounts, and a failover.

Debian's Redis, since Valkey's wheel speaks no TLS. Everybody speaks TLS with everybody, by names
and not by addresses; nobody gets in without a login. docs/security.md says what to set.
"""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from featurestore.backends.redis import RedisStore
from featurestore.errors import FeatureStoreError
from featurestore.settings import StoreSettings
from livevalue.embedded import Stack
from streams.settings import Settings
from tests.contract.deployments import debian_redis
from tests.e2e.deployment import deployment_settings
from tests.e2e.replicas import (
    ClusterSet,
    SentinelSet,
    Wire,
    cluster_set,
    fed,
    is_master,
    sentinel_set,
    wait_for,
)
from tests.e2e.replicated import OnReplicas
from tests.secure.certificates import Certificates, make
from tests.secure.roles import ACL_FOLDER

pytestmark = pytest.mark.long

EVENTS = 600
_BEHIND = 200  # events that the master has taken and its replica has not
_SECRETS = ("worker-password", "wrong-secret", "root-secret")
# Of those who run the servers: for the tests, between the servers, and for Sentinels.
_OPERATED = "user {} on >{}-secret ~* &* +@all\n"


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> tuple[Wire, Certificates]:
    binary = debian_redis()
    if binary is None:
        pytest.skip("no redis-server on the PATH (apt-get install redis-server), Valkey has no TLS")
    folder = tmp_path_factory.mktemp("w")
    certificates = make(folder)
    accounts = {}
    for name in ("redis", "sentinel"):
        accounts[name] = folder / f"{name}.acl"
        sample = (ACL_FOLDER / f"{name}.acl").read_text()
        who = "".join(_OPERATED.format(one, one) for one in ("root", "replica", "sentinel"))
        accounts[name].write_text(sample + who)
    pair = certificates.server
    tls = {
        "tls-cert-file": pair.certificate,
        "tls-key-file": pair.key,
        "tls-ca-cert-file": certificates.authority,
        "tls-auth-clients": "no",
        "tls-replication": "yes",
    }
    node = [word for name, value in tls.items() for word in (f"--{name}", str(value))]
    node += ["--tls-cluster", "yes", "--aclfile", str(accounts["redis"])]
    node += ["--masteruser", "replica", "--masterauth", "replica-secret"]
    node += ["--replica-announce-ip", "localhost"]
    node += ["--cluster-announce-hostname", "localhost"]
    node += ["--cluster-preferred-endpoint-type", "hostname"]
    return (
        Wire(
            binary=binary,
            host="localhost",
            node=tuple(node),
            sentinel=(
                *(f"{name} {value}" for name, value in tls.items()),
                f"aclfile {accounts['sentinel']}",
                "sentinel resolve-hostnames yes",
                "sentinel announce-hostnames yes",
                "sentinel announce-ip localhost",
                "sentinel sentinel-user sentinel",
                "sentinel sentinel-pass sentinel-secret",
            ),
            watch=(
                "sentinel auth-user {MASTER} sentinel",
                "sentinel auth-pass {MASTER} sentinel-secret",
            ),
            client={
                "username": "root",
                "password": "root-secret",
                "ssl": True,
                "ssl_ca_certs": str(certificates.authority),
            },
            login="worker:worker-password@",
            tls=True,
        ),
        certificates,
    )


@pytest.fixture(params=["sentinel", "cluster"])
def servers(
    request: pytest.FixtureRequest,
    wire: tuple[Wire, Certificates],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[SentinelSet | ClusterSet]:
    make_set = sentinel_set if request.param == "sentinel" else cluster_set
    with make_set(tmp_path_factory.mktemp("f"), wire[0]) as made:
        yield made


def _store(url: str, certificates: Certificates, **more: str) -> StoreSettings:
    plain = {"ca_file": str(certificates.authority)} | more
    return StoreSettings.model_validate({"url": SecretStr(url), "timeout_s": 3.0, **plain})


def test_a_failover_behind_tls_and_logins_loses_and_doubles_nothing(
    servers: SentinelSet | ClusterSet,
    wire: tuple[Wire, Certificates],
    stack: Stack,
    topic_prefix: str,
    tmp_path: Path,
) -> None:
    certificates = wire[1]
    for wrong, says in _wrong(servers.url, certificates):
        said = _refusal(wrong)
        assert re.search(says, said), (says, said)
    settings: Settings = deployment_settings(stack.bootstrap, servers.url, topic_prefix)
    settings = settings.model_copy(update={"store": _store(servers.url, certificates)})
    with OnReplicas(settings, tmp_path) as deployment:
        old, new = servers.pair()
        deployment.look(servers.client())
        worker = deployment.start()
        deployment.load(EVENTS)
        deployment.settle()
        new.process.send_signal(signal.SIGSTOP)
        old.client().client_kill_filter(_type="replica")
        deployment.load(_BEHIND)
        deployment.settle()
        old.kill()
        new.process.send_signal(signal.SIGCONT)
        deployment.load(EVENTS)
        wait_for(lambda: is_master(new) and servers.leads(new), 30)
        deployment.look(servers.client())
        deployment.settle()
        assert not fed(new)
        deployment.judge(f"{servers.url.partition(':')[0]}: one failover")
        assert deployment.rolled_back(), "the replica had everything: nothing was proven"
        text = worker.log.read_text()
        assert "NOPERM" not in text
        assert not any(secret in text for secret in _SECRETS)


def _wrong(url: str, certificates: Certificates) -> list[tuple[StoreSettings, str]]:
    """What does not get in, and what it is told."""
    plain, login = url.replace("rediss+", "redis+"), "worker:worker-password"
    other = url.replace(login, "worker:wrong-secret")
    return [
        (_store(url, certificates, ca_file=str(certificates.other_authority)), "STORE__CA_FILE"),
        (_store(url, certificates, ca_file=""), "STORE__CA_FILE"),
        (_store(other, certificates), "STORE__URL or .*PASSWORD_FILE"),
        (_store(url.replace(f"{login}@", ""), certificates), "PASSWORD_FILE"),
        (_store(plain, certificates), "STORE__URL"),
    ]


def _refusal(store: StoreSettings) -> str:
    async def ask() -> None:
        ours = RedisStore(store)
        try:
            await ours.claim(0)
        finally:
            await ours.close()

    began = time.monotonic()
    with pytest.raises(FeatureStoreError) as caught:
        asyncio.run(ask())
    said = str(caught.value)
    assert time.monotonic() - began < 10
    assert "\n" not in said
    assert not any(secret in said for secret in _SECRETS)
    return said
