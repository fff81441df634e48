"""Faults at random moments: kill -9 of workers, Redis and broker, and a Redis that rolls back.

Two workers under a supervisor share the partitions while events come in. At the end the audit of
tests/e2e/deployment.py reads topics and Redis itself.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import redis
from kafka.errors import KafkaError  # type: ignore[import-untyped]

from livevalue.embedded import Stack
from tests.e2e.deployment import Audit, Deployment, deployment_settings, some_events

Say = Callable[[str], None]


@dataclass(frozen=True)
class Scenario:
    """How much happens."""

    events: int = 20_000
    users: int = 500
    rate: float = 340.0  # events a second, so that they come in all the while
    partitions: int = 4
    seed: int = 1
    faults: Mapping[str, int] = field(
        default_factory=lambda: {"kill": 6, "redis": 2, "rollback": 1, "broker": 1}
    )
    pause_s: tuple[float, float] = (1.5, 4.0)  # between two faults


@dataclass
class Result:
    """What was done, and what the audit found."""

    audit: Audit
    done: Counter[str]
    undone: int  # events that the roll-backs took back
    restarts: int  # workers that gave up and were started again
    settle_s: float

    def line(self) -> dict[str, int]:
        """As `make chaos` prints it."""
        return {
            "events": self.audit.events,
            "kills": sum(self.done.values()),
            "lost": self.audit.lost,
            "applied_twice": self.audit.applied_twice,
            "outputs_missing": self.audit.outputs_missing,
            "outputs_twice": self.audit.outputs_twice,
        }


class Chaos:
    """Runs one scenario on a stack of its own."""

    def __init__(self, scenario: Scenario, folder: Path, say: Say = lambda text: None) -> None:
        self.scenario = scenario
        self.folder = folder
        self.say = say
        self.rng = random.Random(scenario.seed)
        self.done: Counter[str] = Counter()
        self.undone = self.restarts = 0
        self._stop = threading.Event()
        self._guard = threading.Lock()  # of the workers, between supervisor and faults

    def run(self) -> Result:
        """Everything, from the stack to the audit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with Stack.started(self.folder / "stack") as stack:
            self.stack = stack
            settings = deployment_settings(
                stack.bootstrap,
                stack.redis_url,
                "chaos.",
                partitions=self.scenario.partitions,
                worker={"log_level": "INFO"},
            )
            with Deployment(settings, self.folder) as self.deployment:
                return self._run()

    def _run(self) -> Result:
        deployment = self.deployment
        for name in ("w0", "w1"):
            deployment.start(name)
        threads = [threading.Thread(target=f) for f in (self._feed, self._supervise)]
        feeder, _ = threads
        for thread in threads:
            thread.start()
        try:
            self._until_moving()
            acts = [a for a, count in self.scenario.faults.items() for _ in range(count)]
            self.rng.shuffle(acts)
            for act in acts:
                time.sleep(self.rng.uniform(*self.scenario.pause_s))
                self.say(act)
                getattr(self, f"_{act}")()
                self.done[act] += 1
            feeder.join()
            settle_s = deployment.settle(180)
            self.say(f"settled after {settle_s:.1f} s")
            found = deployment.audit()
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        for worker in deployment.workers.values():
            worker.signal(signal.SIGTERM)
        for worker in deployment.workers.values():
            worker.wait(30)
        return Result(found, self.done, self.undone, self.restarts, settle_s)

    # ---- what goes on meanwhile

    def _feed(self) -> None:
        """Send at the rate; a producer that loses its broker tries again until it is back."""
        scenario, deployment = self.scenario, self.deployment
        began = time.monotonic()
        for n, (source, event) in enumerate(
            some_events(scenario.events, scenario.users, scenario.seed)
        ):
            while (ahead := n / scenario.rate - (time.monotonic() - began)) > 0:
                if self._stop.wait(min(ahead, 0.05)):
                    return
            while True:
                try:
                    deployment.send(source, event)
                    break
                except KafkaError:
                    if self._stop.wait(0.2):
                        return
        for _ in range(20):
            with contextlib.suppress(KafkaError):
                deployment.flush()
                return

    def _supervise(self) -> None:
        """Start again whoever has ended, as any supervisor does."""
        while not self._stop.wait(0.3):
            with self._guard:
                for name, worker in list(self.deployment.workers.items()):
                    if worker.exit_code is not None and not self._stop.is_set():
                        self.restarts += 1
                        self.say(f"{name} had ended with {worker.exit_code}: started again")
                        self.deployment.start(name)

    def _until_moving(self) -> None:
        # Of every partition: rolled back behind its first commit, a partition is a lost store,
        # and halts as it should.
        until = time.monotonic() + 60
        while len(self.deployment.watermarks()) < self.scenario.partitions:
            if time.monotonic() > until:
                raise AssertionError("not every partition has a commit within 60 s")
            time.sleep(0.1)

    # ---- faults

    def _kill(self) -> None:
        """kill -9 of one worker, started again a moment later."""
        name = self.rng.choice(sorted(self.deployment.workers))
        with self._guard:
            self.deployment.workers[name].kill()
            time.sleep(self.rng.uniform(0, 1.0))
            self.deployment.start(name)

    def _zombie(self) -> None:
        """A worker stops for longer than its session, is taken over, and wakes up again."""
        name = self.rng.choice(sorted(self.deployment.workers))
        with self._guard:
            worker = self.deployment.workers[name]
            worker.signal(signal.SIGSTOP)
        time.sleep(self.deployment.settings.kafka.session_timeout_s + 4)
        worker.signal(signal.SIGCONT)

    def _redis(self) -> None:
        """kill -9 of Valkey, down for a moment."""
        assert self.stack.valkey is not None
        self.stack.valkey.kill()
        time.sleep(self.rng.uniform(0.1, 1.5))
        self.stack.valkey.start()

    def _rollback(self) -> None:
        """Valkey comes back with its files of a moment ago, as after a bad failover."""
        valkey = self.stack.valkey
        assert valkey is not None
        files, old = valkey.data, self.folder / "old"
        shutil.rmtree(old, ignore_errors=True)
        os.kill(valkey.pid, signal.SIGSTOP)  # a copy of one moment
        shutil.copytree(files, old)
        os.kill(valkey.pid, signal.SIGCONT)
        copied, until = self._folded(), time.monotonic() + 15
        time.sleep(self.rng.uniform(0.5, 2.0))
        # The workers may stand still at this moment; a roll-back has something to undo.
        while (before := self._folded()) < copied + 100 and time.monotonic() < until:
            time.sleep(0.1)
        valkey.kill()
        shutil.rmtree(files)
        shutil.copytree(old, files)
        valkey.start()
        self.undone += max(0, before - self._folded())

    def _broker(self) -> None:
        """kill -9 of the broker."""
        assert self.stack.kafka is not None
        self.stack.kafka.kill()
        time.sleep(self.rng.uniform(0.3, 1.5))
        self.stack.kafka.start()

    def _folded(self) -> int:
        for _ in range(100):
            try:
                return sum(self.deployment.positions().values())
            except redis.RedisError:
                time.sleep(0.05)
        raise AssertionError("Valkey does not answer")
