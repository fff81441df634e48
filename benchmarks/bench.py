"""What all measurements share: the stack, a deployment on it, processes and their CPU time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import redis
from pydantic import SecretStr

from featurestore.settings import StoreSettings
from livevalue.embedded import Stack
from scoring.generation import Generation, load, prior
from streams import topics
from streams.settings import KafkaSettings, Settings, WorkerSettings
from streams.stores import Stores

ROOT = Path(__file__).resolve().parents[1]
GENERATION = ROOT / "livevalue" / "data" / "generation"
PARTITIONS = 8
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the report. ratio = value / baseline, where there is a baseline."""

    name: str
    value: float
    unit: str
    method: str
    baseline: float | None = None
    ratio: float | None = None

    def line(self) -> dict[str, object]:
        """As it stands in latest.json."""
        return asdict(self)


@dataclass(slots=True)
class Bench:
    """A running stack with one deployment, and the figures so far."""

    stack: Stack
    settings: Settings
    folder: Path
    generation: Generation
    figures: list[Figure] = field(default_factory=list)

    def add(self, name: str, value: float, unit: str, method: str) -> None:
        """Report one figure."""
        self.figures.append(Figure(name, value, unit, method))
        print(f"  {name:<44} {value:>12,.4g} {unit}", flush=True)

    def client(self) -> redis.Redis:
        """A plain client, to look from outside."""
        return redis.Redis.from_url(self.stack.redis_url)

    def folded(self, client: redis.Redis) -> tuple[int, int]:
        """(events, commits) that the watermarks of all partitions stand at."""
        pipe = client.pipeline(transaction=False)
        for p in range(PARTITIONS):
            pipe.hmget(f"lv:main:{{{p}}}:wm", "positions", "seq")
        positions = commits = 0
        for at, seq in pipe.execute():
            if at:
                positions += sum(map(int, at.split(b",")))
                commits += int(seq)
        return positions, commits

    def environment(self) -> dict[str, str]:
        """The deployment's settings as a process takes them."""
        said = {}
        for section, values in self.settings.model_dump(mode="json", exclude_unset=True).items():
            for name, one in values.items():
                text = one if isinstance(one, str) else json.dumps(one)
                said[f"LIVEVALUE_{section}__{name}".upper()] = text
        said["LIVEVALUE_STORE__URL"] = self.stack.redis_url
        return said


def bundled(settings: Settings) -> Generation:
    """The generation that comes with the package, or `prior` where there is none."""
    if not (GENERATION / "manifest.json").exists():
        return prior(settings.model)
    return load({path.name: path.read_bytes() for path in GENERATION.iterdir()})


@contextmanager
def benched(folder: Path) -> Iterator[Bench]:
    """A stack in `folder` with topics and the bundled generation as champion."""
    with Stack.started(folder / "stack", fast=True) as stack:
        settings = Settings(
            kafka=KafkaSettings(
                bootstrap=stack.bootstrap,
                app="bench",
                partitions=PARTITIONS,
                session_timeout_s=45.0,  # a worker that shares its core is not a dead one
            ),
            store=StoreSettings(url=SecretStr(stack.redis_url)),
            worker=WorkerSettings(log_level="INFO"),
        )
        generation = bundled(settings)
        topics.apply(settings)
        asyncio.run(_promote(settings, generation))
        yield Bench(stack, settings, folder, generation)


async def _promote(settings: Settings, generation: Generation) -> None:
    stores = Stores(settings)
    try:
        registry = stores.registry()
        await registry.promote(await registry.publish(generation))
    finally:
        await stores.close()


def cpu_s(pid: int) -> float:
    """User and system CPU time of a process with all its threads, from /proc (10 ms steps)."""
    with open(f"/proc/{pid}/stat") as file:
        after = file.read().rpartition(")")[2].split()
    return (int(after[11]) + int(after[12])) * _TICK_S


def waited_s(pid: int) -> float:
    """Seconds that threads of a process were ready but had no core, from /proc."""
    total = 0.0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((thread / "schedstat").read_text().split()[1]) / 1e9
        except OSError:  # it has ended, or the kernel keeps no such figure
            continue
    return total


class Process:
    """A Python process of the benchmark, its output in a file."""

    def __init__(self, bench: Bench, name: str, command: Sequence[str], **more: str) -> None:
        self.log = bench.folder / f"{name}.log"
        single = {f"{lib}_NUM_THREADS": "1" for lib in ("OMP", "OPENBLAS", "MKL")}
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, **single, **bench.environment(), **more},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def cpu_s(self) -> float:
        """CPU time so far; raises where the process has ended."""
        if self._process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.log.name}: ended with {self._process.returncode}:\n{tail}")
        return cpu_s(self.pid)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                self._process.send_signal(how)
                try:
                    self._process.wait(20)
                except subprocess.TimeoutExpired:
                    continue
