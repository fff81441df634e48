"""What a retrain of a generated log costs: `python -m benchmarks.retrain --events 1000000,3000000`.

A log of mixed events (benchmarks.load), a year long, 50 events a user, is written as JSONL; then
`livevalue retrain FILE --publish-only` runs on it as a process of its own. One line of JSON a size:
seconds of wall and CPU, peak of resident memory, what was trained on. `--fast` trains one epoch
and no origin: reading, folding and the tables are as in full, so the peak tells what they take.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.load import events
from featurestore import times

YEAR_MS = 365 * 86_400_000
A_USER = 50  # events
START_MS = times.parse("2024-01-01T00:00:00Z")
FAST = {"LIVEVALUE_RETRAIN__ORIGINS": "0", "LIVEVALUE_TRAINING__EPOCHS": "1"}


def write(file: Path, count: int) -> None:
    """The log of that many events."""
    with file.open("wb") as out:
        for _, _, body in events(count, count // A_USER, START_MS, YEAR_MS / count, seed=1):
            out.write(body + b"\n")


def measure(file: Path, folder: Path, *, fast: bool) -> dict[str, object]:
    """One retrain of a file, as a process."""
    report = folder / "report.json"
    env = {
        **os.environ,
        "LIVEVALUE_MODEL__REGISTRY": str(folder / "registry"),
        **(FAST if fast else {}),
    }
    words = ["retrain", str(file), "--publish-only", "--json", str(report)]
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "livevalue", *words], env=env, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(report.read_text())
    return {
        "wall_s": round(time.monotonic() - began, 1),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        # The largest of all children so far: sizes are measured from small to large.
        "peak_mib": round(after.ru_maxrss / 1024),
        "rows_validated": found["metrics"]["validation"]["rows"],
        "reason": found["reason"],
    }


def main() -> None:
    """Sizes from small to large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", default="1000000,3000000", help="sizes, comma-separated")
    parser.add_argument("--fast", action="store_true", help="one epoch, no origin")
    parser.add_argument("--dir", type=Path, help="where logs are written; a scratch folder")
    given = parser.parse_args()
    for count in sorted(int(size) for size in given.events.split(",")):
        with tempfile.TemporaryDirectory(dir=given.dir) as scratch:
            file = Path(scratch) / "log.jsonl"
            write(file, count)
            print(json.dumps({"events": count, **measure(file, Path(scratch), fast=given.fast)}))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
