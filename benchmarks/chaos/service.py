"""How long a partition goes unserved: a worker killed, restarted as planned, Redis away a minute.

    python -m benchmarks.chaos.service [--times N] [--outage S] [--only kill,restart,outage]

Two workers, a steady load on every partition. Ten times a second the watermarks are read; what
counts is the longest time over all partitions in which one stood still. In an outage it is the
time from Redis's return (SIGCONT after SIGSTOP) until every partition has moved, and no worker
may have ended meanwhile. Prints a row a measurement, last one line of JSON, in seconds; ends with
1 where one is beyond its limit: the session timeout and 3 s after a kill, 5 s otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import redis

from benchmarks.chaos import load
from benchmarks.chaos.faults import Say
from benchmarks.chaos.runner import Scenario, chaos_settings
from livevalue.embedded import Stack
from tests.e2e.deployment import Deployment

KINDS = ("kill", "restart", "outage")
_EVERY_S = 0.1
_CALM_S = 5.0  # both workers serve, before each measurement and at a restart's end
_PATIENCE_S = 120.0


@dataclass
class Measured:
    """Seconds that each measurement took, by its kind."""

    session_s: float
    took: dict[str, list[float]] = field(default_factory=dict)

    @property
    def limits(self) -> dict[str, float]:
        """The most that each kind may take."""
        return {"kill": self.session_s + 3.0, "restart": 5.0, "outage": 5.0}

    @property
    def too_long(self) -> dict[str, float]:
        """What took longer than it may, at worst."""
        worst = {kind: max(each) for kind, each in self.took.items()}
        return {kind: took for kind, took in worst.items() if took > self.limits[kind]}

    def line(self) -> dict[str, object]:
        """The last line."""
        return {**self.took, "session_timeout_s": self.session_s, "well": not self.too_long}


class Watch:
    """Reads the watermarks ten times a second."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._halt = threading.Event()
        self._moved: dict[int, list[float]] = {}  # partition -> when it was seen to move
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._halt.set()
        self._thread.join(10)

    def moved(self, since: float) -> int:
        """How many partitions were seen to move since then."""
        return sum(times[-1] > since for times in list(self._moved.values()))

    def still(self, since: float) -> float:
        """Longest time from `since` to now in which any partition stood still."""
        now = time.monotonic()
        longest = 0.0
        for times in self._moved.values():
            # From the last move before the event: that is since when nobody served.
            at = [t for t in times if t < since][-1:] + [t for t in times if t >= since] + [now]
            longest = max(longest, *(b - a for a, b in pairwise(at)))
        return longest

    def _look(self) -> None:
        seen: dict[int, str] = {}
        while not self._halt.wait(_EVERY_S):
            try:
                marks = self._deployment.watermarks()
            except redis.RedisError:
                continue
            for p, mark in marks.items():
                if seen.get(p) != mark["positions"]:
                    seen[p] = mark["positions"]
                    self._moved.setdefault(p, []).append(time.monotonic())


class Service:
    """The measurements, on one stack."""

    def __init__(self, deployment: Deployment, stack: Stack, watch: Watch) -> None:
        self._deployment = deployment
        self._stack = stack
        self._watch = watch

    def until_served(self) -> None:
        """Wait until both workers serve and every partition has moved since, and then for calm."""
        workers = self._deployment.workers
        _until(lambda: all(w.serves() for w in workers.values()), "not every worker serves")
        self._until_moved(time.monotonic())
        time.sleep(_CALM_S)

    def kill(self, outage_s: float) -> float:
        """kill -9 of one of two workers, and nobody starts it again."""
        began = time.monotonic()
        self._deployment.workers["w0"].kill()
        # What it moved last may be seen only now; nobody takes over as early as that.
        time.sleep(self._deployment.settings.kafka.session_timeout_s / 2)
        self._until_moved(time.monotonic())
        took = self._watch.still(began)
        self._deployment.start("w0")
        return took

    def restart(self, outage_s: float) -> float:
        """SIGTERM of one of two workers, started again as soon as it has ended."""
        began = time.monotonic()
        if code := self._deployment.workers["w0"].stop():
            raise AssertionError(f"exit code {code} after SIGTERM")
        self._deployment.start("w0")
        self.until_served()
        return self._watch.still(began)

    def outage(self, outage_s: float) -> float:
        """Valkey does not answer for a minute."""
        assert self._stack.valkey is not None
        pid = self._stack.valkey.pid
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic() + _EVERY_S  # a look may have been under way
        try:
            time.sleep(outage_s)
            if self._watch.moved(stopped):
                raise AssertionError("Valkey answered while it was stopped")
        finally:
            os.kill(pid, signal.SIGCONT)
        back = time.monotonic()
        # What had been sent to it before is done by then: no worker has heard of it.
        time.sleep(_EVERY_S)
        before = self._deployment.watermarks()

        def served() -> bool:
            marks = self._deployment.watermarks()
            return all(marks[p]["positions"] != mark["positions"] for p, mark in before.items())

        _until(served, "a partition does not move")
        took = time.monotonic() - back
        codes = {name: worker.exit_code for name, worker in self._deployment.workers.items()}
        if set(codes.values()) != {None}:
            raise AssertionError(f"a worker ended in the outage: {codes}")
        return took

    def _until_moved(self, since: float) -> None:
        """Wait until every partition was seen to move since then."""
        count = self._deployment.settings.kafka.partitions
        _until(lambda: self._watch.moved(since) == count, "a partition does not move")


def _until(what: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + _PATIENCE_S
    while not what():
        if time.monotonic() > until:
            raise AssertionError(f"{otherwise} within {_PATIENCE_S:g} s")
        time.sleep(_EVERY_S)


def measure(
    folder: Path, kinds: Sequence[str], times: int, outage_s: float, rate: float, say: Say
) -> Measured:
    """Each kind `times` times, an outage once, on a stack of its own."""
    over = threading.Event()
    with Stack.started(folder / "stack") as stack:
        settings = chaos_settings(stack.bootstrap, stack.redis_url, Scenario())
        measured = Measured(settings.kafka.session_timeout_s)
        with Deployment(settings, folder, forks=False) as deployment:
            for name in ("w0", "w1"):
                deployment.start(name)
            feeder = load.Feeder(settings.kafka, 500, 1, rate, lambda _: over.is_set())
            feeder.start()
            watch = Watch(deployment)
            service = Service(deployment, stack, watch)
            try:
                for kind in kinds:
                    one: Callable[[float], float] = getattr(service, kind)
                    for _ in range(1 if kind == "outage" else times):
                        service.until_served()
                        took = round(one(outage_s), 2)
                        measured.took.setdefault(kind, []).append(took)
                        say(f"{kind}: {took} s")
            finally:
                over.set()
                watch.stop()
                feeder.stop()
    return measured


def tell(measured: Measured) -> int:
    """Print what was too long, and the line; -> exit code."""
    for kind, took in measured.too_long.items():
        print(f"TOO LONG: {kind} took {took} s, limit {measured.limits[kind]:g} s")
    print(json.dumps(measured.line()), flush=True)
    return int(bool(measured.too_long))


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=3, help="of each (an outage: once)")
    parser.add_argument("--outage", type=float, default=60.0, metavar="S")
    parser.add_argument("--only", type=_kinds, default=KINDS, metavar="KIND,…")
    parser.add_argument("--rate", type=float, default=150.0, help="messages a second")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="livevalue-service-"))
    print(f"logs in {folder}", flush=True)

    def say(text: str) -> None:
        print(text, flush=True)

    return tell(measure(folder, chosen.only, chosen.times, chosen.outage, chosen.rate, say))


def _kinds(text: str) -> list[str]:
    """`kill,outage`."""
    found = text.split(",")
    for kind in found:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(KINDS)}")
    return found


if __name__ == "__main__":
    sys.exit(main())
