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
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import redis

from benchmarks.chaos import load
from benchmarks.chaos.runner import Scenario, chaos_settings
from livevalue.embedded import Stack
from tests.e2e.deployment import Deployment

_EVERY_S = 0.1
_CALM_S = 8.0  # before each measurement: both workers serve
_JOINED_S = 25.0  # a worker that starts has joined by then, on a busy machine too


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

    def moved(self) -> dict[int, float]:
        """When each partition moved last."""
        return {p: times[-1] for p, times in self._moved.items()}

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

    def kill(self, outage_s: float) -> float:
        """kill -9 of one of two workers, and nobody starts it again."""
        session_s = self._deployment.settings.kafka.session_timeout_s
        began = time.monotonic()
        self._deployment.workers["w0"].kill()
        time.sleep(session_s + 6)
        took = self._watch.still(began)
        self._deployment.start("w0")
        time.sleep(_JOINED_S)
        return took

    def restart(self, outage_s: float) -> float:
        """SIGTERM of one of two workers, started again as soon as it has ended."""
        began = time.monotonic()
        if code := self._deployment.workers["w0"].stop():
            raise AssertionError(f"exit code {code} after SIGTERM")
        self._deployment.start("w0")
        time.sleep(_JOINED_S)
        return self._watch.still(began)

    def outage(self, outage_s: float) -> float:
        """Valkey does not answer for a minute."""
        assert self._stack.valkey is not None
        pid = self._stack.valkey.pid
        os.kill(pid, signal.SIGSTOP)
        time.sleep(outage_s)
        os.kill(pid, signal.SIGCONT)
        back = time.monotonic()
        while min(self._watch.moved().values()) < back:
            if time.monotonic() - back > 120:
                raise AssertionError("a partition does not move again within 120 s")
            time.sleep(_EVERY_S / 2)
        took = max(self._watch.moved().values()) - back
        ended = {n: w.exit_code for n, w in self._deployment.workers.items() if w.exit_code}
        if ended:
            raise AssertionError(f"a worker ended in the outage: {ended}")
        return took


def main() -> int:
    """Measure, print."""
    kinds = ("kill", "restart", "outage")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=3, help="of each (an outage: once)")
    parser.add_argument("--outage", type=float, default=60.0, metavar="S")
    parser.add_argument("--only", default=",".join(kinds), metavar="KIND,…")
    parser.add_argument("--rate", type=float, default=150.0, help="messages a second")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="livevalue-service-"))
    over = threading.Event()
    results: dict[str, list[float]] = {}
    with Stack.started(folder / "stack") as stack:
        settings = chaos_settings(stack.bootstrap, stack.redis_url, Scenario())
        with Deployment(settings, folder, forks=False) as deployment:
            for name in ("w0", "w1"):
                deployment.start(name)
            feeder = load.Feeder(settings.kafka, 500, 1, chosen.rate, lambda _: over.is_set())
            feeder.start()
            watch = Watch(deployment)
            service = Service(deployment, stack, watch)
            print(f"logs in {folder}", flush=True)
            try:
                time.sleep(_JOINED_S)
                for kind in chosen.only.split(","):
                    measure: Callable[[float], float] = getattr(service, kind)
                    for _ in range(1 if kind == "outage" else chosen.times):
                        time.sleep(_CALM_S)
                        took = round(measure(chosen.outage), 2)
                        results.setdefault(kind, []).append(took)
                        print(f"{kind}: {took} s", flush=True)
            finally:
                over.set()
                watch.stop()
                feeder.stop()
    session_s = settings.kafka.session_timeout_s
    limits = {"kill": session_s + 3, "restart": 5.0, "outage": 5.0}
    worst = {kind: max(each) for kind, each in results.items()}
    too_long = [kind for kind, longest in worst.items() if longest > limits[kind]]
    for kind in too_long:
        print(f"TOO LONG: {kind} took {worst[kind]} s, limit {limits[kind]:g} s", flush=True)
    print(json.dumps({**results, "session_timeout_s": session_s, "well": not too_long}))
    return int(bool(too_long))


if __name__ == "__main__":
    sys.exit(main())
