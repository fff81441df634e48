"""`make bench`: the worker end to end on the embedded Kafka and Valkey, everything on.

    python -m benchmarks [--quick] [--out FILE]

Prints each figure as it is measured, then the machine; writes benchmarks/results/latest.json, a
list of {name, value, unit, baseline, ratio, method}. Ends by itself in less than six minutes,
with --quick in less than one. Figures of CPU time hold on a machine that does other work as well,
those by the clock only on a quiet one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from benchmarks import baseline, latency, rebuild, size, throughput
from benchmarks.bench import ROOT, Bench, Figure, benched

RESULTS = ROOT / "benchmarks" / "results" / "latest.json"
GOALS = {"worker.events_per_s_per_core": 20_000.0}
TIMES_NAIVE = 20.0
_PACKAGES = ("faust-streaming", "aiokafka", "numpy", "onnxruntime", "msgspec", "orjson", "hiredis")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    users: int
    events: int
    rounds: int
    naive_s: float
    rate: int
    latency_s: float


FULL = Size(users=20_000, events=300_000, rounds=3, naive_s=15, rate=1000, latency_s=20)
QUICK = Size(users=5_000, events=80_000, rounds=1, naive_s=3, rate=200, latency_s=3)


def main() -> int:
    """Measure, print, write; 1 where a goal is missed (never with --quick)."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small, under a minute")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the figures go")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="livevalue-bench-"))
    began = time.monotonic()
    try:
        with benched(folder) as bench:
            figures = _measure(bench, QUICK if chosen.quick else FULL)
    except BaseException:
        print(f"logs are in {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    lines = [figure.line() for figure in figures]
    chosen.out.write_text(json.dumps(lines, indent=1) + "\n")
    print(f"\n{machine()}\n{time.monotonic() - began:.0f} s; figures and methods in {chosen.out}")
    missed = [_missed(figure) for figure in figures]
    print("\n".join(filter(None, missed)) or "every goal is met")
    return 1 if any(missed) and not chosen.quick else 0


def _measure(bench: Bench, amount: Size) -> list[Figure]:
    """All figures; the worker's throughput beside the naive worker's."""
    print("naive Faust worker")
    baseline.measure(bench, amount.users, amount.naive_s)
    print("worker, on a backlog")
    worker = throughput.measure(bench, amount.users, amount.events, amount.rounds)
    try:
        print("latency")
        latency.measure(bench, worker, amount.users, amount.rate, amount.latency_s)
        print("size")
        size.measure(bench)
    finally:
        worker.stop()
    print("backfill")
    rebuild.measure(bench, min(2, os.cpu_count() or 1))
    found = {figure.name: figure.value for figure in bench.figures}
    figures = [_compared(figure, found) for figure in bench.figures]
    ratio = next(f.ratio for f in figures if f.name == "worker.events_per_s_per_core")
    print(f"\nthe worker does {ratio:.1f} times as many events a core as the naive one")
    return figures


def _compared(figure: Figure, found: dict[str, float]) -> Figure:
    """With the naive worker's figure of the same run, where it has one."""
    part, _, name = figure.name.partition(".")
    naive = found.get(f"naive.{name}") if part == "worker" else None
    return figure if naive is None else replace(figure, baseline=naive, ratio=figure.value / naive)


def _missed(figure: Figure) -> str:
    goal = GOALS.get(figure.name)
    if goal is None:
        return ""
    if figure.value < goal:
        return f"missed: {figure.name} is {figure.value:,.0f}, the goal {goal:,.0f}"
    if (figure.ratio or 0) < TIMES_NAIVE:
        return f"missed: {figure.name} is {figure.ratio:.1f} x naive, the goal {TIMES_NAIVE:.0f} x"
    return ""


def machine() -> str:
    """Cores, CPU, Python and versions, in one paragraph."""
    model = "unknown CPU"
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"{os.cpu_count()} cores of {model}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {packages}"
    )


if __name__ == "__main__":
    sys.exit(main())
