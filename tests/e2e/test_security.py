"""Nobody gets in, and who is kept out is told why: TLS, logins and permissions on real servers.

Kafka with TLS, SCRAM, PLAIN, client certificates and its StandardAuthorizer; Debian's Redis with
TLS and ACL. A worker runs under the sample permissions of docs/acl; everything that can be wrong
between it and its servers is refused with one line that names the setting.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from kafka import KafkaAdminClient, KafkaConsumer  # type: ignore[import-untyped]
from kafka.errors import TopicAuthorizationFailedError  # type: ignore[import-untyped]
from kafka.producer import KafkaProducer  # type: ignore[import-untyped]
from pydantic import SecretStr

from featurestore.errors import FeatureStoreError
from featurestore.settings import StoreSettings
from streams import topics
from streams.app import preflight
from streams.errors import StreamsError
from streams.settings import KafkaSettings, Settings, WorkerSettings
from streams.stores import Stores
from tests.e2e.deployment import ROOT, Deployment, WorkerProcess, environment, send_all, some_events
from tests.secure.broker import PASSWORDS, SecureKafka
from tests.secure.cache import SecureRedis, secure_redis
from tests.secure.certificates import Certificates, make
from tests.secure.roles import allow, kafka_acls

pytestmark = pytest.mark.long

SECRETS = (*PASSWORDS.values(), "worker-password", "reader-password", "wrong-secret")
WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """Everything that runs for this file."""

    folder: Path
    certificates: Certificates
    kafka: SecureKafka
    redis: SecureRedis

    def log(self, listener: str = "SASL_SSL", **more: Any) -> KafkaSettings:
        security = "SSL" if listener in ("WRONG", "EXPIRED") else listener
        plain = {
            "bootstrap": self.kafka.at(listener),
            "security": security,
            "sasl_mechanism": "SCRAM-SHA-512",
            "username": "worker",
            "password": SecretStr(PASSWORDS["worker"]),
            "ca_file": str(self.certificates.authority),
            "partitions": 2,
            "session_timeout_s": 6.0,
            "heartbeat_s": 1.5,
        }
        return KafkaSettings.model_validate(plain | more)

    def store(self, url: str = "", **more: Any) -> StoreSettings:
        plain = {
            "url": SecretStr(url or self.redis.url()),
            "ca_file": str(self.certificates.authority),
            "timeout_s": 3.0,
        }
        return StoreSettings.model_validate(plain | more)

    def settings(
        self, kafka: KafkaSettings | None = None, store: StoreSettings | None = None
    ) -> Settings:
        return Settings(
            kafka=kafka or self.log(),
            store=store or self.store(),
            worker=WorkerSettings(clock="log"),
        )

    @property
    def root(self) -> Settings:
        """Settings of a test that may do everything, over the servers' plain ports."""
        here = {"bootstrap": self.kafka.bootstrap, "security": "PLAINTEXT"}
        return self.settings(self.log(**here), StoreSettings(url=SecretStr(self.redis.root)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("sec")
    certificates = make(folder)
    with secure_redis(folder, certificates) as cache:
        kafka = SecureKafka(folder / "kafka", certificates)
        kafka.start()
        try:
            allow(kafka.bootstrap, kafka_acls())
            here = Place(folder, certificates, kafka, cache)
            topics.apply(here.root)
            yield here
        finally:
            kafka.stop()


def _refusal(settings: Settings) -> str:
    """What a worker of these settings says at its start; it must not begin."""

    async def begin() -> None:
        stores = Stores(settings)
        try:
            await preflight(settings, stores)
        finally:
            await stores.close()

    began = time.monotonic()
    with pytest.raises((StreamsError, FeatureStoreError)) as caught:
        asyncio.run(begin())
    said = str(caught.value)
    assert time.monotonic() - began < WITHIN_S
    assert "\n" not in said
    _holds_no_secret(said)
    return said


def _holds_no_secret(text: str) -> None:
    for secret in SECRETS:
        assert secret not in text


# ---- everyone that should get in, does


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("listener", ["SASL_SSL", "SASL_PLAINTEXT"])
def test_every_login_is_spoken(place: Place, listener: str, mechanism: str) -> None:
    topics.require(place.settings(place.log(listener, sasl_mechanism=mechanism)))


def test_a_client_certificate_opens_kafka(place: Place) -> None:
    client = place.certificates.client
    files = {"cert_file": str(client.certificate), "key_file": str(client.key)}
    with pytest.raises(StreamsError, match="this client may not DESCRIBE"):
        # Let in, by the name in the certificate; what it may do is another matter.
        topics.require(place.settings(place.log("SSL", **files)))


def test_a_client_certificate_opens_redis(place: Place) -> None:
    client = place.certificates.client
    url = place.redis.url("default:", place.redis.demanding).replace("default:@", "")
    files = {"cert_file": str(client.certificate), "key_file": str(client.key)}
    stores = Stores(place.settings(store=place.store(url, **files)))

    async def look() -> None:
        assert await stores.store().meta() is None
        await stores.close()

    asyncio.run(look())


def test_a_worker_under_its_sample_permissions_turns_events_into_scores(place: Place) -> None:
    secrets = {"kafka": place.folder / "kafka-password", "redis": place.folder / "redis-password"}
    secrets["kafka"].write_text(PASSWORDS["worker"] + "\n")
    secrets["redis"].write_text("worker-password\n")
    settings = place.settings(
        place.log(password=SecretStr(""), password_file=str(secrets["kafka"])),
        place.store(place.redis.url("worker"), password_file=str(secrets["redis"])),
    )
    with Deployment(place.root, place.folder) as deployment:
        worker = WorkerProcess(settings, place.folder / "worker.log")
        deployment.workers["worker"] = worker
        send_all(deployment, list(some_events(300, 20)))
        deployment.send_raw(1, b"u1", b"no event")
        deployment.flush()
        deployment.settle()
        assert worker.stop() == 0
        found = deployment.audit()
        assert found.clean, found
        assert found.events == 300
        assert found.letters == 1
        said = worker.log.read_text()
        _holds_no_secret(said)
        assert "NOPERM" not in said
        assert "AuthorizationFailed" not in said


# ---- everything that can be wrong


def test_kafka_refuses_and_names_the_setting(place: Place) -> None:
    certificates = place.certificates
    strange = {
        "cert_file": str(certificates.stranger.certificate),
        "key_file": str(certificates.stranger.key),
    }
    wrong: dict[str, Any] = {"password": SecretStr("wrong-secret")}
    nobody: dict[str, Any] = {"username": "nobody", "password": SecretStr(PASSWORDS["nobody"])}
    reader: dict[str, Any] = {"username": "reader", "password": SecretStr(PASSWORDS["reader"])}
    for kafka, says in [
        (place.log(ca_file=str(certificates.other_authority)), "KAFKA__CA_FILE"),
        (place.log(ca_file=""), "KAFKA__CA_FILE"),
        (place.log(ca_file="/nowhere"), "KAFKA__CA_FILE"),
        (place.log("WRONG"), "another host.*KAFKA__BOOTSTRAP"),
        (place.log("EXPIRED"), "expired.*KAFKA__BOOTSTRAP"),
        (place.log("SSL"), "KAFKA__CERT_FILE"),
        (place.log("SSL", **strange), "KAFKA__CERT_FILE"),
        (place.log(cert_file="/nowhere"), "KAFKA__CERT_FILE"),
        (place.log(**wrong), "refuses the login.*KAFKA__USERNAME"),
        (place.log(sasl_mechanism="PLAIN", **wrong), "refuses the login.*KAFKA__USERNAME"),
        (place.log(password=SecretStr(""), password_file="/nowhere"), "KAFKA__PASSWORD_FILE"),
        (place.log(security="PLAINTEXT"), "KAFKA__BOOTSTRAP and __SECURITY"),
        (place.log(security="SASL_PLAINTEXT"), "KAFKA__BOOTSTRAP and __SECURITY"),
        (place.log("SASL_PLAINTEXT", security="SASL_SSL"), "KAFKA__SECURITY"),
        (place.log(**nobody), "nobody may not DESCRIBE topic .*KAFKA__USERNAME"),
        (place.log(**reader), "reader may not DESCRIBE topic .*KAFKA__USERNAME"),
        (place.log(app="other"), "worker may not .*other.*KAFKA__USERNAME"),
    ]:
        said = _refusal(place.settings(kafka))
        assert _matches(says, said), (says, said)


def test_redis_refuses_and_names_the_setting(place: Place) -> None:
    certificates, cache = place.certificates, place.redis
    strange = {
        "cert_file": str(certificates.stranger.certificate),
        "key_file": str(certificates.stranger.key),
    }
    plain = f"rediss://localhost:{cache.server.port}"
    for store, says in [
        (place.store(ca_file=str(certificates.other_authority)), "STORE__CA_FILE"),
        (place.store(ca_file="/nowhere"), "STORE__CA_FILE"),
        (place.store(cache.url(port=cache.wrong)), "another host.*STORE__URL"),
        (place.store(cache.url(port=cache.expired)), "expired.*STORE__URL"),
        (place.store(cache.url(port=cache.demanding)), "STORE__CERT_FILE"),
        (place.store(cache.url(port=cache.demanding), **strange), "STORE__CERT_FILE"),
        (place.store(cache.url("worker:wrong-secret")), "STORE__URL or .*PASSWORD_FILE"),
        (place.store(cache.url("nobody:wrong-secret")), "STORE__URL or .*PASSWORD_FILE"),
        (place.store(cache.url("worker"), password_file="/nowhere"), "STORE__PASSWORD_FILE"),
        (place.store(cache.url("reader:reader-password")), "STORE__URL.*docs/acl/redis.acl"),
        (place.store(plain), "STORE__URL"),
        (place.store(f"redis://localhost:{cache.port}"), "STORE__URL"),
    ]:
        said = _refusal(place.settings(store=store))
        assert _matches(says, said), (says, said)


def _matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


@pytest.mark.parametrize("broken", ["kafka", "redis"])
def test_commands_and_workers_end_with_one_line_and_no_secret(place: Place, broken: str) -> None:
    kafka = place.log(password=SecretStr("wrong-secret")) if broken == "kafka" else place.log()
    store = place.store(place.redis.url("worker:wrong-secret")) if broken == "redis" else None
    settings = place.settings(kafka, store)
    secret = {"LIVEVALUE_KAFKA__PASSWORD": settings.kafka.password.get_secret_value()}
    names = {"kafka": "LIVEVALUE_KAFKA__USERNAME", "redis": "LIVEVALUE_STORE__URL"}

    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            env={**os.environ, **environment(settings), **secret},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        output = done.stdout + done.stderr
        _holds_no_secret(output)
        assert "Traceback" not in output
        return done.returncode, output

    code, said = run("streams.app")
    assert code == 1
    assert len(said.strip().splitlines()) == 1
    assert names[broken] in said
    code, said = run("livevalue", "doctor")
    assert code == 1
    assert names[broken].rpartition("__")[2] in said.replace("\n", "")
    code, said = run("livevalue", "settings")
    assert code == 0
    assert "***" in said


# ---- what a role must not do


def test_a_reader_reads_values_and_nothing_else(place: Place) -> None:
    reader = place.log(username="reader", password=SecretStr(PASSWORDS["reader"]))
    options = topics.connection(reader)
    consumer = KafkaConsumer(**options, enable_auto_commit=False)
    try:
        assert consumer.partitions_for_topic("scores") == {0, 1}
        assert not consumer.partitions_for_topic("events.purchase")
    finally:
        consumer.close()
    for topic in ("scores", "events.purchase"):
        _may_not_produce(options, topic)
    cache = _account(place, "reader")
    assert cache.get("lv:meta") is not None
    _refuses(cache, ["SET", "lv:meta", "x"], ["DEL", "lv:meta"], ["GET", "other"])
    _refuses(cache, ["FCALL", "f", "0"], ["FUNCTION", "LOAD", "x"], ["FLUSHALL"])
    cache.close()


def test_a_worker_touches_only_its_own(place: Place) -> None:
    options = topics.connection(place.log())
    for topic in place.log().sources:
        _may_not_produce(options, topic)
    cache = _account(place, "worker")
    _refuses(
        cache, ["GET", "other"], ["SET", "other", "x"], ["FLUSHALL"], ["FLUSHDB"], ["KEYS", "*"]
    )
    _refuses(cache, ["CONFIG", "SET", "maxmemory", "1"], ["ACL", "LIST"], ["SHUTDOWN"])
    _refuses(cache, ["FUNCTION", "DELETE", "livevalue"], ["REPLICAOF", "NO", "ONE"])
    cache.close()


def test_an_operator_makes_topics_and_deletes_none(place: Place) -> None:
    operator = place.log(username="operator", password=SecretStr(PASSWORDS["operator"]))
    settings = place.settings(operator)
    assert {step.action for step in topics.apply(settings)} == {"keep"}
    topics.require(settings)
    admin = KafkaAdminClient(**topics.connection(operator))
    with pytest.raises(TopicAuthorizationFailedError):
        admin.delete_topics(["scores"])
    admin.close()
    cache = _account(place, "operator")
    assert cache.info("server")
    assert cache.config_get("maxmemory-policy")
    _refuses(cache, ["CONFIG", "SET", "maxmemory", "1"], ["FLUSHALL"], ["ACL", "LIST"])
    _refuses(cache, ["GET", "other"], ["SHUTDOWN"], ["KEYS", "*"])
    cache.close()


def _account(place: Place, role: str) -> redis.Redis:
    return redis.Redis(
        host="localhost",
        port=place.redis.port,
        username=role,
        password=f"{role}-password",
        ssl=True,
        ssl_ca_certs=str(place.certificates.authority),
    )


def _refuses(cache: redis.Redis, *commands: list[str]) -> None:
    for words in commands:
        with pytest.raises(redis.exceptions.NoPermissionError):
            cache.execute_command(*words)  # type: ignore[no-untyped-call]


def _may_not_produce(options: dict[str, Any], topic: str) -> None:
    producer = KafkaProducer(**options, max_block_ms=5000, enable_idempotence=False)
    try:
        with pytest.raises(TopicAuthorizationFailedError):
            producer.send(topic, b"x").get(5)
    finally:
        producer.close(timeout=2)
