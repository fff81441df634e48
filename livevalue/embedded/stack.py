"""Kafka and Valkey in one folder, on loopback, for as long as a `with` block lasts.

    async with Stack("run") as stack:          with Stack.started("run") as stack:
        stack.bootstrap, stack.redis_url           ...

Ready within 30 s the first time once Kafka is fetched, within 5 s after. The data stay in the
folder and so do the ports, where they are still free. No server outlives the process that
started it, however that ends. Faults for tests: `stack.kafka.kill()` is kill -9,
`stack.kafka.start()` starts again on the same port with the same data; `.pid` takes signals;
`stack.valkey.data` is the folder of the append-only files. The same for `stack.valkey`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from livevalue.embedded import ports
from livevalue.embedded.errors import Cancelled
from livevalue.embedded.folder import RunFolder
from livevalue.embedded.jars import Progress
from livevalue.embedded.kafka import Kafka
from livevalue.embedded.process import Server
from livevalue.embedded.progress import shown
from livevalue.embedded.valkey import Fsync, Valkey


class Stack:
    """The stack of one folder. Not started until entered; can be entered again.

    `bootstrap` and `redis_url` name servers that run already: those are not started here.
    `kafka_port` and `valkey_port` are taken as they are, or the start fails; without them
    ports are found. `progress(what, done, of)` is told how fetching goes; without one it is
    shown on a terminal, or as plain lines. `fast` is for measuring (see Kafka).
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        bootstrap: str | None = None,
        redis_url: str | None = None,
        kafka_port: int | None = None,
        valkey_port: int | None = None,
        fsync: Fsync = "always",
        progress: Progress | None = None,
        fast: bool = False,
    ) -> None:
        self.folder = Path(folder).resolve()
        self.kafka: Kafka | None = None
        self.valkey: Valkey | None = None
        self._bootstrap = bootstrap
        self._redis_url = redis_url
        self._kafka_port = kafka_port
        self._valkey_port = valkey_port
        self._fsync: Fsync = fsync
        self._progress = progress
        self._fast = fast
        self._run = RunFolder(self.folder)
        self._cancelled = threading.Event()

    @property
    def bootstrap(self) -> str:
        """host:port of the broker."""
        if self.kafka is not None:
            return self.kafka.bootstrap
        if self._bootstrap is None:
            raise RuntimeError("the stack is not started: enter it first")
        return self._bootstrap

    @property
    def redis_url(self) -> str:
        """redis://host:port/0 of Valkey."""
        if self.valkey is not None:
            return self.valkey.url
        if self._redis_url is None:
            raise RuntimeError("the stack is not started: enter it first")
        return self._redis_url

    def start(self) -> None:
        """Start what is not given, side by side; on any error nothing is left running."""
        self._cancelled.clear()
        self._run.acquire()
        try:
            self._make_servers()
            with ThreadPoolExecutor(2, thread_name_prefix="stack") as pool:
                starts = [pool.submit(server.start) for server in self._servers()]
                try:
                    for start in starts:
                        start.result()
                except BaseException:
                    # Ctrl-C, or one of the two has failed: the other shall not be waited for.
                    self._cancelled.set()
                    raise
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop what was started, Kafka and Valkey at once; give the folder up."""
        servers = self._servers()
        try:
            if servers:
                with ThreadPoolExecutor(2, thread_name_prefix="stack") as pool:
                    list(pool.map(lambda server: server.stop(), servers))
        finally:
            self.kafka = self.valkey = None
            self._run.release()

    def _servers(self) -> list[Server]:
        return [server for server in (self.kafka, self.valkey) if server is not None]

    def _tell(self, progress: Progress) -> Progress:
        """Told of progress, a start that was cancelled meanwhile ends."""

        def tell(what: str, done: int, of: int) -> None:
            if self._cancelled.is_set():
                raise Cancelled(f"{what}: cancelled")
            progress(what, done, of)

        return tell

    def _make_servers(self) -> None:
        held = (self._run.descriptor,)
        before = self._run.ports()
        chosen: dict[str, int] = {}

        def choose(name: str, named: int | None) -> int:
            known = before.get(name, 0)
            if named is not None:
                chosen[name] = ports.require(named, name)
            elif known and known not in chosen.values() and ports.is_free(known):
                chosen[name] = known
            else:
                chosen[name] = ports.free({*chosen.values(), *before.values()})
            return chosen[name]

        if self._redis_url is None:
            self.valkey = Valkey(
                self.folder / "valkey",
                choose("valkey", self._valkey_port),
                fsync=self._fsync,
                held=held,
            )
        if self._bootstrap is None:
            self.kafka = Kafka(
                self.folder / "kafka",
                choose("kafka", self._kafka_port),
                choose("controller", None),
                fast=self._fast,
                progress=self._tell(self._progress or shown()),
                held=held,
            )
        for server in self._servers():
            server.cancelled = self._cancelled.is_set
        self._run.remember({**before, **chosen})

    @classmethod
    @contextmanager
    def started(
        cls,
        folder: str | Path,
        *,
        bootstrap: str | None = None,
        redis_url: str | None = None,
        kafka_port: int | None = None,
        valkey_port: int | None = None,
        fsync: Fsync = "always",
        progress: Progress | None = None,
        fast: bool = False,
    ) -> Iterator[Stack]:
        """The same without asyncio."""
        stack = cls(
            folder,
            bootstrap=bootstrap,
            redis_url=redis_url,
            kafka_port=kafka_port,
            valkey_port=valkey_port,
            fsync=fsync,
            progress=progress,
            fast=fast,
        )
        stack.start()
        try:
            yield stack
        finally:
            stack.stop()

    async def __aenter__(self) -> Stack:
        starting = asyncio.get_running_loop().run_in_executor(None, self.start)
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._cancelled.set()
            await asyncio.wait([starting])
            if starting.exception() is None:
                await asyncio.to_thread(self.stop)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.stop)
