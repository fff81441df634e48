"""The faults: each a method of `Faults`, named as on the command line, and when it counts.

kill        kill -9 of a worker that serves a partition, started again within a second
zombie      a worker that serves is stopped (SIGSTOP) for longer than its session, then let go on;
            counts where each of its partitions was claimed by another meanwhile
redis       kill -9 of Valkey, down for a moment; counts where it answered before and not while down
rollback    Valkey comes back with its files of a while ago; counts where at least 1,000 folded
            positions were undone
broker      kill -9 of the broker, counts as redis does; one whose group coordinator stays away is
            restarted cleanly
deaf_redis, deaf_broker   the server is stopped (SIGSTOP) for a minute: connections stay open, new
            ones are accepted by the kernel; counts where nothing answered
full        Valkey has no memory left (CONFIG SET maxmemory) for a few seconds; counts where it
            refused a worker's write (INFO errorstats)
starve      a busy process on every core for a while; counts where the cores were idle for less
            than a tenth of it
join, leave a worker more; a worker ends as planned (SIGTERM), and another starts; counts where the
            new one came to serve, the one that left ended with 0 and others claimed what it had
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
from typing import Any, NamedTuple, cast

import psutil
import redis
from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from kafka.errors import KafkaError  # type: ignore[import-untyped]

from livevalue.embedded import Stack
from livevalue.embedded.process import Server
from streams import broker
from tests.e2e.deployment import Deployment

Say = Callable[[str], None]
KINDS = (
    *("kill", "zombie", "redis", "rollback", "broker"),
    *("deaf_redis", "deaf_broker", "full", "starve", "join", "leave"),
)
UNDONE = 1_000  # positions, at least
_SERVES_S = 20.0  # until a worker serves that may be killed
_JOINS_S = 40.0  # until one that joined serves, and what one that left had is served
_FULL_S = (5.0, 20.0)  # at least; until a write is refused
_IDLE = 10.0  # % of the cores, at most, where they are starved
_FOLD_S = 60.0  # until so many are folded
_COORDINATOR_S = 30.0  # a broker without a group coordinator for longer is restarted
_BURN = "import time\nend = time.monotonic() + {}\nwhile time.monotonic() < end: pass"


class Bite(NamedTuple):
    """Whether a fault did what it is for, and a word on it."""

    bit: bool
    said: str


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
        self.done: Counter[str] = Counter()  # those that did what they are for
        self.in_vain: Counter[str] = Counter()  # those that did not
        self.undone: list[int] = []  # positions that each roll-back took back, if enough
        self.undone_to: list[dict[int, int]] = []  # by partition, a commit that each one left
        self.coordinators = 0  # brokers restarted for want of a group coordinator
        self._valkey, self._kafka = stack.valkey, stack.kafka
        self._folder = folder
        self._rng = rng
        self._say = say
        self._deaf_s = deaf_s
        self._joined = 0

    def do(self, kind: str) -> bool:
        """One fault, from its beginning to its end; -> whether it did what it is for."""
        began = time.monotonic()
        bite: Bite = getattr(self, kind)()
        (self.done if bite.bit else self.in_vain)[kind] += 1
        vain = "" if bite.bit else ", IN VAIN"
        self._say(f"{kind}: {bite.said}{vain} ({time.monotonic() - began:.1f} s)")
        return bite.bit

    # ---- workers

    def kill(self) -> Bite:
        name = self._any_worker()
        with self.guard:
            worker = self.deployment.workers[name]
            had = worker.serves()
            alive = worker.exit_code is None
            worker.kill()
            killed = worker.exit_code == -signal.SIGKILL
            time.sleep(self._rng.uniform(0, 1.0))
            self.deployment.start(name)
        return Bite(bool(alive and killed and had), f"{name}, served {had}")

    def zombie(self) -> Bite:
        name = self._any_worker()
        worker = self.deployment.workers[name]
        worker.signal(signal.SIGSTOP)
        had = worker.serves()
        before, until = self._tokens(), time.monotonic() + 3 * self._session_s
        time.sleep(self._session_s + 4)
        while not (taken := self._claimed_since(had, before)) and time.monotonic() < until:
            time.sleep(0.2)
        alive = worker.exit_code is None  # nobody has started another under its name
        worker.signal(signal.SIGCONT)
        said = f"{name}, {had} {'taken over' if taken else 'not taken over'}"
        return Bite(alive and taken, said)

    def join(self) -> Bite:
        self._joined += 1
        name = f"j{self._joined}"
        with self.guard:
            self.deployment.start(name)
        until = time.monotonic() + _JOINS_S
        while not (has := self.deployment.workers[name].serves()) and time.monotonic() < until:
            time.sleep(0.2)
        return Bite(bool(has), f"{name}, serves {has}")

    def leave(self) -> Bite:
        name = self._any_worker()
        before = self._tokens()
        with self.guard:
            worker = self.deployment.workers.pop(name)
            had = worker.serves()
            worker.signal(signal.SIGTERM)
        try:
            code = worker.wait(60)
        except subprocess.TimeoutExpired:
            worker.kill()
            raise AssertionError(f"{name} has not left within 60 s: see {worker.log}") from None
        if len(self.deployment.workers) < 2:
            with self.guard:
                self.deployment.start(name)
        until = time.monotonic() + _JOINS_S
        while not (taken := self._claimed_since(had, before)) and time.monotonic() < until:
            time.sleep(0.2)
        said = f"{name}, exit code {code}, {had} {'taken over' if taken else 'not taken over'}"
        return Bite(code == 0 and taken, said)

    @property
    def _session_s(self) -> float:
        return self.deployment.settings.kafka.session_timeout_s

    def _any_worker(self) -> str:
        """One of those that serve a partition; of all where none does for a while."""
        until = time.monotonic() + _SERVES_S
        while time.monotonic() < until:
            with self.guard:
                serving = [n for n, w in self.deployment.workers.items() if w.serves()]
            if serving:
                return self._rng.choice(sorted(serving))
            time.sleep(0.2)
        return self._rng.choice(sorted(self.deployment.workers))

    def _tokens(self) -> dict[int, str]:
        """Whose claim each partition is under."""
        for _ in range(100):
            try:
                return {p: mark["token"] for p, mark in self.deployment.watermarks().items()}
            except redis.RedisError:
                time.sleep(0.05)
        raise AssertionError("Valkey does not answer")

    def _claimed_since(self, partitions: list[int], before: dict[int, str]) -> bool:
        """Whether each of at least one partition was claimed anew."""
        now = self._tokens()
        return bool(partitions) and all(now.get(p) != before.get(p) for p in partitions)

    # ---- Valkey

    def redis(self) -> Bite:
        answered = self._valkey.is_ready()
        self._valkey.kill()
        down_s = self._rng.uniform(0.1, 1.5)
        time.sleep(down_s)
        silent = not self._valkey.is_ready()
        self._valkey.start()
        return Bite(answered and silent, f"down {down_s:.1f} s")

    def rollback(self) -> Bite:
        files, old = self._valkey.data, self._folder / "old"
        shutil.rmtree(old, ignore_errors=True)
        self.undone_to.append(self._patiently(self._committed))
        os.kill(self._valkey.pid, signal.SIGSTOP)  # a copy of one moment
        shutil.copytree(files, old)
        os.kill(self._valkey.pid, signal.SIGCONT)
        copied, until = self._folded(), time.monotonic() + _FOLD_S
        while self._folded() < copied + UNDONE and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(self._rng.uniform(0, 1.0))
        before = self._folded()
        self._valkey.kill()
        shutil.rmtree(files)
        shutil.copytree(old, files)
        self._valkey.start()
        # At least: what the workers have folded again already is not counted.
        undone = before - copied
        if undone >= UNDONE:
            self.undone.append(undone)
        return Bite(undone >= UNDONE, f"{undone} positions undone")

    def deaf_redis(self) -> Bite:
        return self._deafen(self._valkey)

    def full(self) -> Bite:
        at_least, at_most = _FULL_S
        with redis.Redis(port=self._valkey.port) as client:
            used = int(cast(dict[str, Any], client.info("memory"))["used_memory"])
            before, began = _refused(client), time.monotonic()
            client.config_set("maxmemory", max(1, used - (1 << 20)))
            try:
                while (passed := time.monotonic() - began) < at_most:
                    # None but the workers' writes: we only read and configure.
                    refused = _refused(client) - before
                    if refused and passed >= at_least:
                        break
                    time.sleep(0.2)
            finally:
                client.config_set("maxmemory", 0)
        return Bite(refused > 0, f"{refused} writes refused")

    # ---- the broker

    def broker(self) -> Bite:
        answered = self._kafka.is_ready()
        self._kafka.kill()
        down_s = self._rng.uniform(0.3, 1.5)
        time.sleep(down_s)
        silent = not self._kafka.is_ready()
        self._kafka.start()
        return Bite(answered and silent, f"down {down_s:.1f} s" + self.look_at_coordinator())

    def deaf_broker(self) -> Bite:
        bit, said = self._deafen(self._kafka)
        return Bite(bit, said + self.look_at_coordinator())

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
                **broker.connection(kafka), group_id=kafka.app, enable_auto_commit=False
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

    def starve(self) -> Bite:
        seconds = 10
        cores = os.cpu_count() or 1
        psutil.cpu_times_percent()  # from here on
        burners = [
            subprocess.Popen([sys.executable, "-c", _BURN.format(seconds)]) for _ in range(cores)
        ]
        codes = [burner.wait(10 * seconds) for burner in burners]
        idle = psutil.cpu_times_percent().idle
        return Bite(not any(codes) and idle < _IDLE, f"{cores} cores, {idle:.0f} % idle")

    def _deafen(self, server: Server) -> Bite:
        answered, pid = server.is_ready(), server.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(self._deaf_s / 2)
            silent = not server.is_ready()
            time.sleep(self._deaf_s / 2)
            silent = silent and not server.is_ready() and server.pid == pid
        finally:
            os.kill(pid, signal.SIGCONT)
        return Bite(answered and silent, f"{self._deaf_s:g} s")

    def _folded(self) -> int:
        return sum(self._patiently(self.deployment.positions).values())

    def _committed(self) -> dict[int, int]:
        """Number of the last commit of each partition."""
        client = self.deployment.redis
        partitions = range(self.deployment.settings.kafka.partitions)
        return {
            p: int(cast("bytes | None", client.get(f"lv:{{{p}}}:seq")) or 0) for p in partitions
        }

    def _patiently(self, ask: Callable[[], dict[Any, int]]) -> dict[Any, int]:
        for _ in range(100):
            try:
                return ask()
            except redis.RedisError:
                time.sleep(0.05)
        raise AssertionError("Valkey does not answer")


def _refused(client: redis.Redis) -> int:
    """How many commands Valkey has refused for want of memory since it started."""
    errors: dict[str, Any] = client.info("errorstats")
    return int(errors.get("errorstat_OOM", {}).get("count", 0))
