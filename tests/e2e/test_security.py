"""Nobody gets in, and who is kept out is told why: TLS, logins and permissions on real servers.

A worker runs under the sample permissions of docs/acl; everything that can be wrong between it and
its servers is refused with one line that names the setting. Who may do what, once he is in, is in
tests.e2e.test_permissions.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from aiokafka import AIOKafkaConsumer  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from cryptography.hazmat.primitives import serialization
from kafka.admin import (  # type: ignore[import-untyped]
    KafkaAdminClient,
    UserScramCredentialUpsertion,
)
from pydantic import SecretStr

from featurestore.errors import FeatureStoreError, StoreUnavailable
from featurestore.store import StoreInfo
from livevalue.jobs.letters import erase, letters, replay_letters
from streams import topics
from streams.connection import aiokafka_options, stop
from streams.errors import LogAuthError, StreamsError
from streams.settings import KafkaSettings, Settings
from streams.stores import Stores
from tests.e2e.deployment import ROOT, Deployment, WorkerProcess, environment, send_all, some_events
from tests.secure.broker import PASSWORDS
from tests.secure.place import Place, place, start
from tests.secure.roles import ACL_FOLDER

__all__ = ["place"]

pytestmark = pytest.mark.long

SECRETS = (
    *PASSWORDS.values(),
    *("worker-password", "reader-password", "wrong-secret", "first-secret", "second-secret"),
)
WITHIN_S = 10.0


def _refusal(settings: Settings) -> str:
    """What a worker of these settings says at its start; it must not begin."""
    began = time.monotonic()
    with pytest.raises((StreamsError, FeatureStoreError)) as caught:
        start(settings)
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


_REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("SASL_SSL", {"ca_file": ""}),
    ("WRONG", {}),
    ("EXPIRED", {}),
    ("SSL", {}),
    ("SASL_SSL", {"password": SecretStr("wrong-secret")}),
    ("SASL_SSL", {"security": "PLAINTEXT"}),
    ("SASL_PLAINTEXT", {"security": "SASL_SSL"}),
]


def _own_connection(kafka: KafkaSettings) -> set[str]:
    """The topics that a client of the worker's own kind is shown, without the look before it."""

    async def ask() -> set[str]:
        client = AIOKafkaConsumer(**aiokafka_options(kafka))
        try:
            await client.start()
            return set(await client.topics())
        finally:
            await stop(client)

    return asyncio.run(asyncio.wait_for(ask(), WITHIN_S))


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("listener", ["SASL_SSL", "SASL_PLAINTEXT"])
def test_the_workers_own_connection_speaks_every_login(
    place: Place, listener: str, mechanism: str
) -> None:
    topics.apply(place.everything())
    kafka = place.log(listener, sasl_mechanism=mechanism)
    assert set(kafka.sources) <= _own_connection(kafka)


@pytest.mark.parametrize("known", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_login_is_made_by_the_mechanism_of_the_settings(place: Place, known: str) -> None:
    """Of somebody whose password the broker has under one mechanism only."""
    login: dict[str, Any] = {"username": known.lower(), "password": SecretStr("first-secret")}
    root = KafkaAdminClient(bootstrap_servers=place.kafka.bootstrap)
    change = UserScramCredentialUpsertion(known.lower(), known, "first-secret")
    assert root.alter_user_scram_credentials([change]) == {known.lower(): None}
    root.close()
    other = {"SCRAM-SHA-256", "SCRAM-SHA-512"} - {known}
    kafka, wrong = (place.log(sasl_mechanism=m, **login) for m in (known, *other))
    until = time.monotonic() + WITHIN_S
    while "refuses the login" in (said := _refusal(place.settings(kafka))):
        assert time.monotonic() < until, said  # until the broker has applied it
    assert "may not DESCRIBE" in said
    _own_connection(kafka)
    assert "refuses the login" in _refusal(place.settings(wrong))
    with pytest.raises(KafkaError):
        _own_connection(wrong)


def test_the_workers_own_connection_shows_its_certificate(place: Place) -> None:
    client = place.certificates.client
    files = {"cert_file": str(client.certificate), "key_file": str(client.key)}
    _own_connection(place.log("SSL", **files))


def test_the_workers_own_connection_trusts_no_other_authority(place: Place) -> None:
    with pytest.raises(KafkaError):
        _own_connection(place.log(ca_file=str(place.certificates.other_authority)))


@pytest.mark.parametrize(("listener", "more"), _REFUSED)
def test_the_workers_own_connection_is_refused_without_the_look_before_it(
    place: Place, listener: str, more: dict[str, Any]
) -> None:
    with pytest.raises(KafkaError) as caught:
        _own_connection(place.log(listener, **more))
    _holds_no_secret(str(caught.value))


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


def test_a_password_changed_in_its_file_needs_no_restart(place: Place) -> None:
    secret = place.folder / "changing"
    sample = (ACL_FOLDER / "redis.acl").read_text()
    (rules,) = (r.split()[2:] for r in sample.splitlines() if r.startswith("user worker "))
    root = redis.Redis.from_url(place.redis.root)

    def change(password: str) -> None:
        kept = [word for word in rules if not word.startswith(">")]
        root.execute_command("ACL", "SETUSER", "changing", "resetpass", f">{password}", *kept)  # type: ignore[no-untyped-call]
        secret.write_text(f"{password}\nwhat stands below counts for nothing\n")
        root.client_kill_filter(user="changing")

    async def look() -> None:
        stores = Stores(settings)

        async def known() -> list[StoreInfo]:
            until = time.monotonic() + WITHIN_S
            while True:
                try:
                    return await stores.store().stores()
                except StoreUnavailable:  # the connection that was cut; a worker tries again
                    assert time.monotonic() < until
                    await asyncio.sleep(0.05)

        try:
            for password in ("first-secret", "second-secret"):
                change(password)
                assert await known() == []
        finally:
            await stores.close()

    root.execute_command("ACL", "SETUSER", "changing")  # type: ignore[no-untyped-call]
    settings = place.settings(
        store=place.store(place.redis.url("changing"), password_file=str(secret))
    )
    root.flushall()
    asyncio.run(look())
    root.close()


def test_a_password_of_kafka_changed_in_its_file_is_taken_by_whoever_starts_later(
    place: Place,
) -> None:
    secret = place.folder / "changing-kafka"
    log = place.log(username="changing", password=SecretStr(""), password_file=str(secret))
    settings = place.settings(log)
    root = KafkaAdminClient(bootstrap_servers=place.kafka.bootstrap)

    def change(password: str) -> None:
        change = UserScramCredentialUpsertion("changing", log.sasl_mechanism, password)
        assert root.alter_user_scram_credentials([change]) == {"changing": None}

    def write(password: str) -> None:
        secret.write_text(f"{password}\nwhat stands below counts for nothing\n")

    def gets_in() -> bool:
        """Whether a client that starts now is let in, with no right to do anything."""
        with pytest.raises(StreamsError) as caught:
            topics.require(settings)
        _holds_no_secret(str(caught.value))
        return "refuses the login of 'changing'" not in str(caught.value)

    change("first-secret")
    write("first-secret")
    assert gets_in()
    change("second-secret")
    until = time.monotonic() + WITHIN_S
    while gets_in():  # until the broker has applied it
        assert time.monotonic() < until
    write("second-secret")
    assert gets_in()
    root.close()


def test_a_password_that_is_said_wins_over_its_file(place: Place) -> None:
    missing = "/nowhere"
    topics.require(place.settings(place.log(password_file=missing)))
    stores = Stores(place.settings(store=place.store(password_file=missing)))

    async def look() -> None:
        await stores.store().meta()
        await stores.close()

    asyncio.run(look())


def test_without_an_authority_the_systems_are_trusted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where OpenSSL looks for the system's.
    monkeypatch.setenv("SSL_CERT_FILE", str(place.certificates.authority))
    topics.require(place.settings(place.log(ca_file="")))
    stores = Stores(place.settings(store=place.store(ca_file="")))

    async def look() -> None:
        await stores.store().meta()
        await stores.close()

    asyncio.run(look())


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
    locked = {"cert_file": str(certificates.client.certificate), "key_file": str(_locked(place))}
    for kafka, says in [
        (place.log(ca_file=str(certificates.other_authority)), "KAFKA__CA_FILE"),
        (place.log(ca_file=""), "KAFKA__CA_FILE"),
        (place.log(ca_file="/nowhere"), "KAFKA__CA_FILE"),
        (place.log("WRONG"), "another host.*KAFKA__BOOTSTRAP"),
        (place.log("EXPIRED"), "expired.*KAFKA__BOOTSTRAP"),
        (place.log("SSL"), "KAFKA__CERT_FILE"),
        (place.log("SSL", **strange), "KAFKA__CERT_FILE"),
        (place.log(cert_file="/nowhere"), "KAFKA__CERT_FILE"),
        (place.log("SSL", **locked), "passphrase.*KAFKA__CERT_FILE"),
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


def test_an_operators_commands_are_refused_as_soon(place: Place) -> None:
    settings = place.settings(place.log(password=SecretStr("wrong-secret")))
    asked: list[Callable[[], Any]] = [
        lambda: list(letters(settings)),
        lambda: replay_letters(settings, None),
        lambda: erase(settings, "ada"),
    ]
    for ask in asked:
        began = time.monotonic()
        with pytest.raises(LogAuthError, match=r"refuses the login.*KAFKA__USERNAME"):
            ask()
        assert time.monotonic() - began < WITHIN_S


def test_redis_refuses_and_names_the_setting(place: Place) -> None:
    certificates, cache = place.certificates, place.redis
    strange = {
        "cert_file": str(certificates.stranger.certificate),
        "key_file": str(certificates.stranger.key),
    }
    locked = {"cert_file": str(certificates.client.certificate), "key_file": str(_locked(place))}
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
        (place.store(cache.url(port=cache.demanding), **locked), "passphrase.*STORE__CERT_FILE"),
        (place.store(f"{cache.url(port=cache.wrong)}?ssl_cert_reqs=none"), "not known: ssl_cert"),
        (place.store(f"{cache.url()}?ssl_check_hostname=false"), "not known: ssl_check"),
        (place.store(plain), "STORE__URL"),
        (place.store(f"redis://localhost:{cache.port}"), "STORE__URL"),
    ]:
        said = _refusal(place.settings(store=store))
        assert _matches(says, said), (says, said)


def _locked(place: Place) -> Path:
    """The client's key under a passphrase."""
    key = serialization.load_pem_private_key(place.certificates.client.key.read_bytes(), None)
    path = place.folder / "locked.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"words"),
        )
    )
    return path


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
