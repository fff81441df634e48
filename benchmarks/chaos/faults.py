"""The faults: each a method of `Faults`, named as on the command line.

kill        kill -9 of a worker, started again within a second
zombie      a worker stopped (SIGSTOP) for longer than its session, then let go on
redis       kill -9 of Valkey, down for a moment
rollback    Valkey comes back with its files of a while ago: at least 1,000 folded positions undone
broker      kill -9 of the broker; one whose group coordinator stays away is restarted cleanly
deaf_redis, deaf_broker   the server is stopped (SIGSTOP) for a minute: connections stay open, new
            ones are accepted by the kernel, nothing answers
full        Valkey has no memory left (CONFIG SET maxmemory) for a few seconds
starve      a busy process on every core for a while
join, leave a worker more; a worker ends as planned (SIGTERM), and another starts
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import redis
from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from kafka.errors import KafkaError  # type: ignore[import-untyped]

from livevalue.embedded import Stack
from streams import topics
from tests.e2e.deployment import Deployment

Say = Callable[[str], None]
KINDS = (
    *("kill", "zombie", "redis", "rollback", "broker"),
    *("deaf_redis", "deaf_broker", "full", "starve", "join", "leave"),
)
_UNDONE = 1_000  # positions, at least
_FOLD_S = 60.0  # until so many are folded
_COORDINATOR_S = 30.0  # a broker without a group coordinator for longer is restarted
_BURN = "import time\nend = time.monotonic() + {}\nwhile time.monotonic() < end: pass"


class Faults:
    """Does what it is told to one deployment; keeps count."""

    def __init__(
        self,
        deployment: Deployment,
        stack: Stack,
        folder: Path,
        rng: random.Random,
        say: Say,
        *,
        deaf_s: float = 60.0,
    ) -> None:
        assert stack.valkey is not None and stack.kafka is not None
        self.deployment = deployment
        self.guard = threading.Lock()  # of the workers, between supervisor and faults
        self.done: Counter[str] = Counter()
        self.undone: list[int] = []  # positions that each roll-back took back
        self.coordinators = 0  # brokers restarted for want of a group coordinator
        self._valkey, self._kafka = stack.valkey, stack.kafka
        self._folder = folder
        self._rng = rng
        self._say = say
        self._deaf_s = deaf_s
        self._joined = 0

    def do(self, kind: str) -> None:
        """One fault, from its beginning to its end."""
        began = time.monotonic()
        said: str | None = getattr(self, kind)()
        self.done[kind] += 1
        self._say(f"{kind}: {said or ''} ({time.monotonic() - began:.1f} s)")

    # ---- workers

    def kill(self) -> str:
        name = self._any_worker()
        with self.guard:
            self.deployment.workers[name].kill()
            time.sleep(self._rng.uniform(0, 1.0))
            self.deployment.start(name)
        return name

    def zombie(self) -> str:
        name = self._any_worker()
        worker = self.deployment.workers[name]
        worker.signal(signal.SIGSTOP)
        time.sleep(self.deployment.settings.kafka.session_timeout_s + 4)
        worker.signal(signal.SIGCONT)
        return name

    def join(self) -> str:
        self._joined += 1
        name = f"j{self._joined}"
        with self.guard:
            self.deployment.start(name)
        return name

    def leave(self) -> str:
        name = self._any_worker()
        with self.guard:
            worker = self.deployment.workers.pop(name)
            worker.signal(signal.SIGTERM)
        try:
            code = worker.wait(60)
        except subprocess.TimeoutExpired:
            worker.kill()
            raise AssertionError(f"{name} has not left within 60 s: see {worker.log}") from None
        if len(self.deployment.workers) < 2:
            with self.guard:
                self.deployment.start(name)
        return f"{name}, exit code {code}"

    def _any_worker(self) -> str:
        return self._rng.choice(sorted(self.deployment.workers))

    # ---- Valkey

    def redis(self) -> str:
        self._valkey.kill()
        down_s = self._rng.uniform(0.1, 1.5)
        time.sleep(down_s)
        self._valkey.start()
        return f"down {down_s:.1f} s"

    def rollback(self) -> str:
        files, old = self._valkey.data, self._folder / "old"
        shutil.rmtree(old, ignore_errors=True)
        os.kill(self._valkey.pid, signal.SIGSTOP)  # a copy of one moment
        shutil.copytree(files, old)
        os.kill(self._valkey.pid, signal.SIGCONT)
        copied, until = self._folded(), time.monotonic() + _FOLD_S
        while self._folded() < copied + _UNDONE and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(self._rng.uniform(0, 1.0))
        before = self._folded()
        self._valkey.kill()
        shutil.rmtree(files)
        shutil.copytree(old, files)
        self._valkey.start()
        # At least: what the workers have folded again already is not counted.
        self.undone.append(before - copied)
        return f"{self.undone[-1]} positions undone"

    def deaf_redis(self) -> str:
        return self._deafen(self._valkey.pid)

    def full(self) -> str:
        with redis.Redis(port=self._valkey.port) as client:
            used = int(cast(dict[str, Any], client.info("memory"))["used_memory"])
            client.config_set("maxmemory", max(1, used - (1 << 20)))
            try:
                time.sleep(5)
                # A large key of another's could not be written now: it is full.
                refused = _refused(client)
            finally:
                client.config_set("maxmemory", 0)
        return "writes refused" if refused else "writes were not refused"

    # ---- the broker

    def broker(self) -> str:
        self._kafka.kill()
        down_s = self._rng.uniform(0.3, 1.5)
        time.sleep(down_s)
        self._kafka.start()
        return f"down {down_s:.1f} s" + self.look_at_coordinator()

    def deaf_broker(self) -> str:
        return self._deafen(self._kafka.pid) + self.look_at_coordinator()

    def look_at_coordinator(self) -> str:
        """Restart the broker cleanly where the group's coordinator stays away."""
        until = time.monotonic() + _COORDINATOR_S
        while time.monotonic() < until:
            if self._coordinated():
                return ""
            time.sleep(0.5)
        self.coordinators += 1
        self._kafka.stop()
        self._kafka.start()
        return ", restarted: no group coordinator"

    def _coordinated(self) -> bool:
        kafka = self.deployment.settings.kafka
        try:
            consumer = KafkaConsumer(
                **topics.connection(kafka), group_id=kafka.app, enable_auto_commit=False
            )
        except KafkaError:
            return False
        try:
            consumer.committed(TopicPartition(kafka.sources[0], 0), timeout_ms=3_000)
        except (KafkaError, TimeoutError):
            return False
        else:
            return True
        finally:
            consumer.close()

    # ---- the machine

    def starve(self) -> str:
        seconds = 10
        cores = os.cpu_count() or 1
        burners = [
            subprocess.Popen([sys.executable, "-c", _BURN.format(seconds)]) for _ in range(cores)
        ]
        for burner in burners:
            burner.wait(10 * seconds)
        return f"{cores} cores"

    def _deafen(self, pid: int) -> str:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self._deaf_s)
        os.kill(pid, signal.SIGCONT)
        return f"{self._deaf_s:g} s"

    def _folded(self) -> int:
        for _ in range(100):
            try:
                return sum(self.deployment.positions().values())
            except redis.RedisError:
                time.sleep(0.05)
        raise AssertionError("Valkey does not answer")


def _refused(client: redis.Redis) -> bool:
    try:
        client.set("lv:chaos", "x", px=1)
    except redis.RedisError:
        return True
    return False
