"""`make crashes`: a worker dies at each named crash point, five times each; then all is counted.

    python -m benchmarks.crashes [--times N] [--points a,b] [--together] [--folder DIR]

Prints a line a crash, and last one line of JSON: {points, runs, exact}; exit 1 unless all runs
are exact. What that means: tests/e2e/crashes.py. Without --together a worker that is not armed
comes back after each crash, and everything is counted; with it, after the N crashes of a point,
each but the first on the way back from the one before: the log and `scores` keep every fault, so
none of the N is called exact unless all are.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from livevalue.embedded import Stack
from streams.crashpoints import POINTS
from tests.e2e.crashes import Crashes, crash_settings
from tests.e2e.deployment import Deployment


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--points", default=",".join(POINTS))
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--folder", type=Path, default=None)
    chosen = parser.parse_args()
    points = chosen.points.split(",")
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="livevalue-crashes-"))
    began = time.monotonic()
    runs = exact = 0
    with Stack.started(folder / "stack") as stack:
        settings = crash_settings(stack.bootstrap, stack.redis_url, "crashes.")
        with Deployment(settings, folder, forks=False) as deployment:
            crashes = Crashes(deployment)
            for point in points:
                for times in [chosen.times] if chosen.together else [1] * chosen.times:
                    runs += times
                    wrong = _crash(crashes, point, times)
                    exact += 0 if wrong else times
                    print(
                        f"{time.monotonic() - began:6.1f} s  {point} x {times}: "
                        f"{'; '.join(wrong) or 'exact'}",
                        flush=True,
                    )
            crashes.close()
    print(json.dumps({"points": len(points), "runs": runs, "exact": exact}), flush=True)
    return 0 if exact == runs else 1


def _crash(crashes: Crashes, point: str, times: int) -> list[str]:
    """What is wrong after that many crashes, the worker of each passing the point once more or not.

    Two partitions: the second time that a point is passed is the other one's, or a later batch.
    """
    try:
        for n in range(times):
            crashes.crash(point, 1 + n % 2)
        return crashes.exact()
    except AssertionError as error:
        return [str(error)]


if __name__ == "__main__":
    sys.exit(main())
