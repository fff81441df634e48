"""A broker that wants a password: who is refused is told which settings to look at."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import pytest
from pydantic import SecretStr

from livevalue.embedded.kafka import Kafka
from livevalue.embedded.ports import free
from streams import broker, topics
from streams.errors import LogAuthError, LogUnavailable
from streams.kafkalog import KafkaLog
from streams.settings import KafkaSettings, Settings


class _WithPassword(Kafka):
    """The embedded broker behind SASL/PLAIN."""

    def prepare(self) -> None:
        super().prepare()
        path = self.folder / "server.properties"
        login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        users = 'username="admin" password="a" user_admin="a" user_app="right"'
        text = path.read_text().replace("PLAINTEXT://127.0.0.1:", "SASL_PLAINTEXT://127.0.0.1:")
        text = text.replace("name=PLAINTEXT", "name=SASL_PLAINTEXT")
        text = text.replace(",PLAINTEXT:PLAINTEXT", ",SASL_PLAINTEXT:SASL_PLAINTEXT")
        path.write_text(
            text + "sasl.enabled.mechanisms=PLAIN\n"
            "sasl.mechanism.inter.broker.protocol=PLAIN\n"
            f"listener.name.sasl_plaintext.plain.sasl.jaas.config={login} {users};\n"
        )


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    port = free(set())
    kafka = _WithPassword(tmp_path_factory.mktemp("secure"), port, free({port}))
    kafka.start()
    yield kafka
    kafka.stop()


def _settings(kafka: Kafka, password: str, security: str = "SASL_PLAINTEXT") -> Settings:
    return Settings(
        kafka=KafkaSettings.model_validate(
            {
                "bootstrap": kafka.bootstrap,
                "security": security,
                "username": "app",
                "password": SecretStr(password),
            }
        )
    )


def test_the_right_password_gets_in(secure: Kafka) -> None:
    settings = _settings(secure, "right")
    topics.apply(settings)
    assert topics.check(settings) == []


def test_a_wrong_password_names_the_settings_and_not_itself(secure: Kafka) -> None:
    with pytest.raises(LogAuthError, match="LIVEVALUE_KAFKA__USERNAME") as caught:
        topics.check(_settings(secure, "wrong-secret"))
    assert "wrong-secret" not in str(caught.value)


async def test_a_job_that_reads_the_log_names_the_settings_of_a_wrong_password(
    secure: Kafka,
) -> None:
    with pytest.raises(LogAuthError, match="LIVEVALUE_KAFKA__USERNAME"):
        await KafkaLog(_settings(secure, "wrong-secret").kafka).__aenter__()


def test_a_wrong_password_is_heard_where_the_driver_is_muted_as_in_a_worker(
    secure: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "_BOOTSTRAP_MS", 4000)
    driver = logging.getLogger("kafka")
    before = driver.level
    driver.setLevel(logging.CRITICAL)
    try:
        with pytest.raises(LogAuthError, match="LIVEVALUE_KAFKA__USERNAME"):
            topics.check(_settings(secure, "wrong-secret"))
    finally:
        driver.setLevel(before)
    assert logging.getLogger("kafka.net").level == logging.NOTSET


def test_no_login_where_one_is_wanted_names_the_security_setting(
    secure: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "_BOOTSTRAP_MS", 2000)
    with pytest.raises(LogUnavailable, match="__SECURITY"):
        topics.check(_settings(secure, "right", "PLAINTEXT"))


@contextmanager
def hangs_up(answers: int) -> Iterator[str]:
    """The address of what closes each connection, once it has answered so many requests."""
    with socket.create_server(("127.0.0.1", 0)) as door:

        def close_each() -> None:
            with suppress(OSError):
                while True:
                    link, _ = door.accept()
                    with link:
                        for _ in range(answers):
                            link.recv(4096)
                            link.sendall(struct.pack(">iih", 6, 1, 0))
                        link.recv(4096)

        Thread(target=close_each, daemon=True).start()
        yield f"127.0.0.1:{door.getsockname()[1]}"


@pytest.mark.parametrize(
    ("security", "answers", "setting"),
    [("SSL", 0, "SECURITY"), ("SASL_SSL", 0, "SECURITY"), ("SASL_PLAINTEXT", 2, "USERNAME")],
)
def test_a_connection_that_ends_amid_handshake_or_login_is_no_reason_to_halt(
    security: str, answers: int, setting: str
) -> None:
    """A broker that goes down in this moment, or what stands before brokers that are down."""
    with hangs_up(answers) as address:
        kafka = {"bootstrap": address, "security": security, "username": "app", "password": "x"}
        with pytest.raises(LogUnavailable, match=f"LIVEVALUE_KAFKA__{setting}"):
            topics.logs(Settings(kafka=KafkaSettings.model_validate(kafka)))
