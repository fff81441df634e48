"""Kafka and Redis behind TLS, logins and the sample permissions of docs/acl, for one test file.

Kafka with TLS, SCRAM, PLAIN, client certificates and its StandardAuthorizer; Debian's Redis with
TLS and ACL. `place` is a fixture: about six seconds to start.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from featurestore.settings import StoreSettings
from streams import topics
from streams.app import preflight
from streams.settings import KafkaSettings, Settings, WorkerSettings
from streams.stores import Stores
from tests.e2e.deployment import Deployment
from tests.secure.broker import PASSWORDS, SecureKafka
from tests.secure.cache import SecureRedis, secure_redis
from tests.secure.certificates import Certificates, make
from tests.secure.roles import allow, kafka_acls


@dataclass(frozen=True, slots=True)
class Place:
    """Everything that runs for a test file."""

    folder: Path
    certificates: Certificates
    kafka: SecureKafka
    redis: SecureRedis

    def log(self, listener: str = "SASL_SSL", prefix: str = "", **more: Any) -> KafkaSettings:
        """Of a worker; `prefix` before the names of topics and of the app."""
        security = "SSL" if listener in ("WRONG", "EXPIRED") else listener
        names = {"app": "livevalue", "scores": "scores", "dlq": "events.dlq"}
        names |= {kind: f"events.{kind}" for kind in ("browse", "purchase", "interaction")}
        plain = {
            **({name: f"{prefix}{said}" for name, said in names.items()} if prefix else {}),
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
        """Of a worker."""
        plain = {
            "url": SecretStr(url or self.redis.url()),
            "ca_file": str(self.certificates.authority),
            "timeout_s": 3.0,
        }
        return StoreSettings.model_validate(plain | more)

    def settings(
        self, kafka: KafkaSettings | None = None, store: StoreSettings | None = None
    ) -> Settings:
        """All of them; the events are of 2023, so the log is the clock."""
        return Settings(
            kafka=kafka or self.log(),
            store=store or self.store(),
            worker=WorkerSettings(clock="log"),
        )

    def role(self, role: str, prefix: str = "", database: int = 0) -> Settings:
        """Of a sample account, as a process of it takes them: Kafka's password in a file."""
        secret = self.folder / f"kafka-{role}"
        secret.write_text(PASSWORDS[role] + "\n")
        login: dict[str, Any] = {
            "username": role,
            "password": SecretStr(""),
            "password_file": str(secret),
        }
        url = self.redis.url(f"{role}:{role}-password").rpartition("/")[0]
        return self.settings(self.log(prefix=prefix, **login), self.store(f"{url}/{database}"))

    def everything(self, prefix: str = "", database: int = 0) -> Settings:
        """Of a test that may do everything, over the servers' plain ports."""
        here: dict[str, Any] = {"bootstrap": self.kafka.bootstrap, "security": "PLAINTEXT"}
        url = f"{self.redis.root.rpartition('/')[0]}/{database}"
        return self.settings(self.log(prefix=prefix, **here), StoreSettings(url=SecretStr(url)))

    @property
    def root(self) -> Settings:
        """`everything`, by the default names."""
        return self.everything()

    def run(
        self, role: str, *words: str, prefix: str = "", database: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """`livevalue WORDS` of a sample account, to its end."""
        return Deployment(self.role(role, prefix, database), self.folder).command(*words)

    @contextmanager
    def corner(self, prefix: str, database: int) -> Iterator[Deployment]:
        """A deployment of its own, with the sample permissions for its names."""
        allow(self.kafka.bootstrap, kafka_acls(prefix))
        with Deployment(self.everything(prefix, database), self.folder) as made:
            yield made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The place of one test file: import it there, and name it in the file's `__all__`."""
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


def start(settings: Settings) -> None:
    """What a worker asks of Kafka and Redis before it begins; raises what it would end with."""

    async def begin() -> None:
        stores = Stores(settings)
        try:
            await preflight(settings, stores)
        finally:
            await stores.close()

    asyncio.run(begin())
