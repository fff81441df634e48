"""`deployment`: each test runs in memory, on Valkey, and on Debian's Redis where there is one.

The servers are the suite's own, not the session's stack: tests here fill them up, flush their
functions and break their connections.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from itertools import count
from typing import Protocol

import pytest

from tests.contract.deployments import (
    Deployment,
    InMemory,
    InRedis,
    Server,
    debian_redis,
    running,
    valkey,
)

Start = Callable[[str], Server]
_prefixes = count(1)


class _Param(Protocol):
    param: str


@pytest.fixture(scope="session")
def server_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Gives the running server of a kind, "valkey" or "redis"; skips where it is missing."""
    started: dict[str, Server] = {}
    with ExitStack() as stack:

        def of(kind: str) -> Server:
            if kind not in started:
                binary = valkey() if kind == "valkey" else debian_redis()
                if binary is None:
                    pytest.skip("no redis-server on the PATH (apt-get install redis-server)")
                folder = tmp_path_factory.mktemp("s")  # short: a socket's path has 107 bytes
                started[kind] = stack.enter_context(running(binary, folder))
            return started[kind]

        yield of


@pytest.fixture(params=["valkey", "redis"])
async def in_redis(request: _Param, server_of: Start) -> AsyncIterator[InRedis]:
    deployment = InRedis(server_of(request.param), f"t{next(_prefixes)}")
    yield deployment
    await deployment.close()


@pytest.fixture(params=["memory", "valkey", "redis"])
async def deployment(request: _Param, server_of: Start) -> AsyncIterator[Deployment]:
    if request.param == "memory":
        yield InMemory()
        return
    deployment = InRedis(server_of(request.param), f"t{next(_prefixes)}")
    yield deployment
    await deployment.close()
