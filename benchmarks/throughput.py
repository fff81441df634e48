"""Events per second of one worker on a backlog: everything on, and its CPU time alone.

The worker starts on the full backlog. From outside, every twentieth of a second, its watermarks
are read from Redis and its CPU time from /proc. What is measured begins once every user has
been seen a few times, and ends before the backlog does: start, imports and the last transaction
are outside, publishing at the same pace is inside (processing waits for it).
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import redis

from benchmarks import load
from benchmarks.bench import Bench, Process, cpu_s

# One event a user and day: within the allowed lateness of 72 h a tail holds three events.
USER_GAP_MS = 86_400_000
WARM_EVENTS = 3  # of each user before the measurement


@dataclass(frozen=True, slots=True)
class Sample:
    """What stood at one moment."""

    at_s: float  # seconds since the epoch
    events: int
    commits: int
    worker_s: float
    kafka_s: float
    valkey_s: float
    server_us: int  # of Redis: all loads and functions


def measure(bench: Bench, users: int, events: int, rounds: int) -> Process:
    """Throughput over a backlog; the worker is left running."""
    step_ms = USER_GAP_MS / users
    start_ms = int(time.time() * 1000 - (events + users) * step_ms)
    size = load.produce(bench.settings, load.events(events, users, start_ms, step_ms, seed=1))
    worker = Process(bench, "worker", ["-m", "streams.app"])
    try:
        _observe(bench, worker, users, events, rounds, size / events)
    except BaseException:
        worker.stop()
        raise
    return worker


def _observe(
    bench: Bench, worker: Process, users: int, events: int, rounds: int, bytes_each: float
) -> None:
    samples: list[Sample] = []
    until = time.monotonic() + 240
    with bench.client() as client:
        while not samples or samples[-1].events < events:
            if time.monotonic() > until:
                raise RuntimeError(f"{samples[-1].events} of {events} events after 240 s")
            samples.append(_sample(bench, worker, client))
            time.sleep(0.05)
    marks = _rounds(samples, WARM_EVENTS * users, int(0.97 * events), rounds)
    first, last = marks[0], marks[-1]
    moved = last.events - first.events

    def each(cost: str) -> list[float]:
        """Microseconds an event, by round."""
        return [
            1e6 * (getattr(b, cost) - getattr(a, cost)) / (b.events - a.events)
            for a, b in itertools.pairwise(marks)
        ]

    cpu = each("worker_s")
    us, said = statistics.median(cpu), ", ".join(f"{c:.1f}" for c in cpu)
    how = (
        f"a backlog of {events:,} events of {bytes_each:.0f} bytes, {users:,} users evenly, "
        f"{len(bench.settings.kafka.sources)} topics x {bench.settings.kafka.partitions} "
        f"partitions, one event a user and day; median of {rounds} rounds over {moved:,} events"
    )
    bench.add("worker.cpu_us_per_event", us, "us", f"CPU time of the worker; {how} ({said})")
    bench.add("worker.events_per_s_per_core", 1e6 / us, "events/s", f"1 / the above; {how}")
    seconds = last.at_s - first.at_s
    here = f"the same backlog, over {seconds:.1f} s"
    bench.add("worker.events_per_s", moved / seconds, "events/s",
              f"{here}, by the clock; broker and Redis share the machine")  # fmt: skip
    bench.add("worker.events_per_commit", moved / (last.commits - first.commits), "events", here)
    written = _written(worker, first.at_s, last.at_s)
    bench.add("worker.users_per_event", written / moved, "users", f"documents / events; {here}")
    bench.add("worker.cpu_us_per_user", 1e6 * (last.worker_s - first.worker_s) / written, "us",
              f"CPU time of the worker / documents; {here}")  # fmt: skip
    bench.add("kafka.cpu_us_per_event", statistics.median(each("kafka_s")), "us", here)
    bench.add("redis.cpu_us_per_event", statistics.median(each("valkey_s")), "us", here)
    bench.add("redis.server_us_per_user", (last.server_us - first.server_us) / written, "us",
              f"INFO commandstats: usec of EXEC and FCALL / documents; {here}")  # fmt: skip


def _rounds(samples: Sequence[Sample], low: int, high: int, rounds: int) -> list[Sample]:
    """The samples that part [low, high] events into rounds of equal size."""
    at = [s.events for s in samples]
    goals = [low + k * (high - low) // rounds for k in range(rounds + 1)]
    marks = [samples[min(bisect_right(at, goal), len(at) - 1)] for goal in goals]
    if any(a.events >= b.events for a, b in itertools.pairwise(marks)):
        raise RuntimeError("too few events to part into rounds: raise their number")
    return marks


def _written(worker: Process, low_s: float, high_s: float) -> int:
    """Documents written between two moments, from the worker's canonical lines."""
    total = 0
    for line in worker.log.read_text().splitlines():
        if '"what":"batch"' in line:
            said = json.loads(line)
            if low_s < datetime.fromisoformat(said["at"]).timestamp() <= high_s:
                total += int(said["users"])
    return total


def _sample(bench: Bench, worker: Process, client: redis.Redis) -> Sample:
    assert bench.stack.kafka is not None and bench.stack.valkey is not None
    events, commits = bench.folded(client)
    stats = client.info("commandstats")
    outer = ("cmdstat_exec", "cmdstat_fcall")  # what runs inside them is in their own time
    return Sample(
        time.time(),
        events,
        commits,
        worker.cpu_s(),
        cpu_s(bench.stack.kafka.pid),
        cpu_s(bench.stack.valkey.pid),
        sum(int(stats[name]["usec"]) for name in outer if name in stats),
    )
