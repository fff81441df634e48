"""One run: workers under a supervisor, the load, the faults, then the audit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient  # type: ignore[import-untyped]
from kafka.admin import ConfigResource  # type: ignore[import-untyped]

from benchmarks.chaos import load
from benchmarks.chaos.faults import Faults, Say
from benchmarks.chaos.found import Audit
from livevalue.embedded import Stack
from streams import broker
from streams.settings import Settings
from tests.e2e.deployment import ROOT, Deployment, deployment_settings, environment

# Six kill -9 of workers, two restarts of Valkey, a roll-back and a broker kill.
SHORT: Mapping[str, int] = {"kill": 6, "redis": 2, "rollback": 1, "broker": 1}
LONG: Mapping[str, int] = {"kill": 24, "redis": 5, "broker": 4, "zombie": 4, "rollback": 4}
# What is no `kill`: for the count of kills in the line.
_WEATHER = frozenset(("full", "starve", "join", "leave", "deaf_redis", "deaf_broker"))
_TRIES = 3  # for each fault that is asked for


@dataclass(frozen=True)
class Scenario:
    """How much happens."""

    events: int = 20_000  # messages at least; the load goes on until the last fault is over
    users: int = 500
    rate: float = 400.0  # messages a second
    partitions: int = 4
    workers: int = 2
    seed: int = 1
    faults: Mapping[str, int] = field(default_factory=lambda: dict(SHORT))
    pause_s: tuple[float, float] = (1.0, 3.0)  # between two faults
    deaf_s: float = 60.0
    settle_s: float = 300.0
    verify: bool = True
    forks: bool = False  # workers are forked, not started from nothing (tests.forks)


@dataclass
class Result:
    """What was done, and what the audit found."""

    scenario: Scenario
    audit: Audit
    different: int  # users of whom `livevalue verify` found a difference
    done: Counter[str]  # faults that did what they are for (faults.py says when)
    in_vain: Counter[str]  # those that did not: not among `done`
    undone: list[int]  # positions that each roll-back took back
    coordinators: int  # brokers restarted for want of a group coordinator
    restarts: int  # workers that gave up and were started again
    sent: Counter[str]
    feed_s: float
    settle_s: float

    @property
    def not_done(self) -> Counter[str]:
        """Faults that were asked for and did not come about, however often they were tried."""
        return Counter(self.scenario.faults) - self.done

    @property
    def clean(self) -> bool:
        """Whether everything that must be zero is zero."""
        return self.audit.clean and not self.different and not self.not_done

    def line(self) -> dict[str, int]:
        """As `make chaos` prints it."""
        found = self.audit.faults()
        names = ("lost", "applied_twice", "outputs_missing", "outputs_twice")
        return {
            "events": self.audit.records,
            "kills": sum(n for kind, n in self.done.items() if kind not in _WEATHER),
            **{name: found.pop(name) for name in names},
            **found,
            "replay_differs": self.different,
            "faults_not_done": self.not_done.total(),
        }


def chaos_settings(bootstrap: str, redis_url: str, scenario: Scenario) -> Settings:
    """A deployment whose lateness and limits the load of load.py stays in touch with."""
    made = deployment_settings(
        bootstrap,
        redis_url,
        "chaos.",
        partitions=scenario.partitions,
        kafka={"max_record_bytes": load.MAX_RECORD_BYTES},
    )
    lateness = timedelta(milliseconds=load.LATENESS_MS)
    return made.model_copy(
        update={"features": made.features.model_copy(update={"lateness": lateness})}
    )


def run(scenario: Scenario, folder: Path, say: Say = lambda text: None) -> Result:
    """Everything, from the stack to the audit."""
    folder.mkdir(parents=True, exist_ok=True)
    with Stack.started(folder / "stack") as stack:
        settings = chaos_settings(stack.bootstrap, stack.redis_url, scenario)
        with Deployment(settings, folder, forks=scenario.forks) as deployment:
            _keep_all(settings)
            return _Run(scenario, stack, deployment, say).result()


class _Run:
    def __init__(self, scenario: Scenario, stack: Stack, deployment: Deployment, say: Say) -> None:
        self._scenario = scenario
        self._deployment = deployment
        self._say = say
        self._rng = random.Random(scenario.seed)
        self._faults = Faults(
            deployment, stack, deployment.folder, self._rng, say, deaf_s=scenario.deaf_s
        )
        self._over = threading.Event()  # all faults are done
        self._stop = threading.Event()
        self._restarts = 0

    def result(self) -> Result:
        scenario, deployment = self._scenario, self._deployment
        for n in range(scenario.workers):
            deployment.start(f"w{n}")
        feeder = load.Feeder(
            deployment.settings.kafka,
            scenario.users,
            scenario.seed,
            scenario.rate,
            lambda sent: sent >= scenario.events and self._over.is_set(),
        )
        supervisor = threading.Thread(target=self._supervise, daemon=True)
        began = time.monotonic()
        feeder.start()
        supervisor.start()
        try:
            self._until_moving()
            self._break()
            self._over.set()
            feeder.join(scenario.events / scenario.rate + scenario.settle_s)
            feed_s = time.monotonic() - began
            self._say(f"all is sent after {feed_s:.0f} s: {dict(feeder.sent)}")
            settle_s = self._settle()
            self._say(f"settled after {settle_s:.1f} s")
            found = deployment.audit(self._faults.undone_to)
            self._say("audited")
            different = verify(deployment.settings) if scenario.verify else 0
        finally:
            self._over.set()
            self._stop.set()
            feeder.stop()
            supervisor.join()
        self._end_workers()
        return Result(
            scenario,
            found,
            different,
            self._faults.done,
            self._faults.in_vain,
            self._faults.undone,
            self._faults.coordinators,
            self._restarts,
            feeder.sent,
            feed_s,
            settle_s,
        )

    def _break(self) -> None:
        """All faults; one that was in vain is tried again when the others are through."""
        tries = {kind: _TRIES * count for kind, count in self._scenario.faults.items()}
        left = deque(self._order())
        while left:
            kind = left.popleft()
            time.sleep(self._rng.uniform(*self._scenario.pause_s))
            tries[kind] -= 1
            if not self._faults.do(kind) and tries[kind] > 0:
                left.append(kind)

    def _order(self) -> list[str]:
        acts = [kind for kind, count in self._scenario.faults.items() for _ in range(count)]
        self._rng.shuffle(acts)
        return acts

    def _supervise(self) -> None:
        """Start again whoever has ended, as any supervisor does."""
        while not self._stop.wait(0.3):
            with self._faults.guard:
                for name, worker in list(self._deployment.workers.items()):
                    if worker.exit_code is not None and not self._stop.is_set():
                        self._restarts += 1
                        self._say(f"{name} had ended with {worker.exit_code}: started again")
                        self._deployment.start(name)

    def _until_moving(self) -> None:
        # Of every partition: rolled back behind its first commit, a partition is a lost store,
        # and halts as it should.
        until = time.monotonic() + 120
        while len(self._deployment.watermarks()) < self._scenario.partitions:
            if time.monotonic() > until:
                raise AssertionError("not every partition has a commit within 120 s")
            time.sleep(0.1)

    def _settle(self) -> float:
        """Until all is folded and published, twice in a row: silence may have had its say."""
        began = time.monotonic()
        while True:
            left = self._scenario.settle_s - (time.monotonic() - began)
            self._deployment.settle(max(1.0, left))
            time.sleep(1.5)
            if self._deployment.settled():
                return time.monotonic() - began

    def _end_workers(self) -> None:
        for worker in self._deployment.workers.values():
            worker.signal(signal.SIGTERM)
        for worker in self._deployment.workers.values():
            worker.wait(60)


def verify(settings: Settings) -> int:
    """`livevalue verify`, as an operator runs it: users that differ."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as out:
        done = subprocess.run(
            [sys.executable, "-m", "livevalue", "verify", "--json", out.name],
            cwd=ROOT,
            env={**_without_settings(), **environment(settings)},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        said: dict[str, Any] = json.loads(Path(out.name).read_text() or "{}")
    if "different" not in said:
        raise AssertionError(f"livevalue verify ended with {done.returncode}: {done.stderr}")
    return int(said["different"])


def _without_settings() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("LIVEVALUE_")}


def _keep_all(settings: Settings) -> None:
    """Compaction would hide from the audit what was sent twice."""
    admin = KafkaAdminClient(**broker.connection(settings.kafka))
    try:
        keep = {"min.compaction.lag.ms": str(7 * 86_400_000)}
        for name in (settings.kafka.scores, settings.kafka.published):
            admin.alter_configs([ConfigResource("TOPIC", name, keep)])
    finally:
        admin.close()
