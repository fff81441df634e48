"""The embedded broker with logins, TLS and permissions: one listener of each protocol.

`SASL_SSL` takes SCRAM and PLAIN, `SASL_PLAINTEXT` the same without TLS, `SSL` wants a client's
certificate, `PLAINTEXT` is for the broker itself and for the test's own looks; what a principal
may do is decided by Kafka's StandardAuthorizer on all of them.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from livevalue.embedded.kafka import Kafka, answers
from livevalue.embedded.ports import free
from tests.secure.certificates import Certificates, Pair

ADMIN = "root"
PASSWORDS = {
    ADMIN: "root-secret",
    "worker": "worker-secret",
    "reader": "reader-secret",
    "operator": "operator-secret",
    "nobody": "nobody-secret",
}


class SecureKafka(Kafka):
    """Ports of further listeners in `ports`, by protocol; WRONG shows another host's certificate,
    EXPIRED one that has run out."""

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        taken: set[int] = set()

        def port() -> int:
            taken.add(found := free(taken))
            return found

        super().__init__(folder, port(), port())
        self.certificates = certificates
        names = ("SASL_SSL", "SASL_PLAINTEXT", "SSL", "WRONG", "EXPIRED")
        self.ports = {name: port() for name in names}

    def at(self, listener: str) -> str:
        return f"localhost:{self.ports[listener]}"

    def configure(self) -> None:
        super().configure()
        ours = self.certificates
        path = self.folder / "server.properties"
        lines = dict(
            line.split("=", 1) for line in path.read_text("utf-8").splitlines() if "=" in line
        )
        more = {name: f"{name}://127.0.0.1:{port}" for name, port in self.ports.items()}
        lines["listeners"] += "," + ",".join(more.values())
        lines["advertised.listeners"] += "," + ",".join(
            f"{name}://localhost:{port}" for name, port in self.ports.items()
        )
        lines["listener.security.protocol.map"] += (
            ",SASL_SSL:SASL_SSL,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL,WRONG:SSL,EXPIRED:SSL"
        )
        lines |= {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # The broker speaks to itself over PLAINTEXT, where everybody is ANONYMOUS.
            "super.users": f"User:ANONYMOUS;User:{ADMIN}",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(ours.authority),
        }
        shown: Mapping[str, Pair] = {
            "SASL_SSL": ours.server,
            "SSL": ours.server,
            "WRONG": ours.other_host,
            "EXPIRED": ours.expired,
        }
        for name, pair in shown.items():
            head = f"listener.name.{name.lower()}.ssl"
            lines[f"{head}.keystore.type"] = "PEM"
            lines[f"{head}.keystore.location"] = str(pair.both)
        lines["listener.name.ssl.ssl.client.auth"] = "required"
        lines["listener.name.ssl.ssl.principal.mapping.rules"] = "RULE:^.*CN=([^,]+).*$/$1/,DEFAULT"
        users = " ".join(f'user_{name}="{word}"' for name, word in PASSWORDS.items())
        security = "org.apache.kafka.common.security"
        for name in ("sasl_ssl", "sasl_plaintext"):
            head = f"listener.name.{name}"
            lines[f"{head}.plain.sasl.jaas.config"] = (
                f"{security}.plain.PlainLoginModule required {users};"
            )
            for mechanism in ("scram-sha-256", "scram-sha-512"):
                lines[f"{head}.{mechanism}.sasl.jaas.config"] = (
                    f"{security}.scram.ScramLoginModule required;"
                )
        path.write_text("".join(f"{key}={value}\n" for key, value in lines.items()), "utf-8")

    def format_options(self) -> Sequence[str]:
        return [
            word
            for name, secret in PASSWORDS.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for word in ("--add-scram", f"{mechanism}=[name={name},password={secret}]")
        ]

    def is_ready(self) -> bool:
        return answers(self.port) and all(_listens(port) for port in self.ports.values())


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True
