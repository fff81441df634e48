"""`make soak`: one worker under a steady load for a long time; what it holds may not grow.

    python -m benchmarks.soak [--minutes N] [--rate N] [--users N] [--folder DIR]

Memory and file descriptors of the worker are sampled each second. The first third is warm-up:
caches fill, and states reach the size at which they stay, for which the allowed lateness is 10 s
here. Growth compares medians of a sixth of the run each, behind the warm-up and at the end, so
that neither a collection nor a batch decides. Prints last one line of JSON; exit 1 where resident
memory grew by 5 % or more, descriptors by more than `SPARE`, or the lag did not return to 0.

Units: seconds, bytes, events.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median

import psutil

from benchmarks.load import events, produce
from featurestore.settings import FeatureSettings
from livevalue.embedded import Stack
from streams.settings import Settings
from tests.e2e.deployment import Deployment, deployment_settings

GROWTH = 0.05  # of resident memory, after warm-up
SPARE = 3  # descriptors: a connection that is being made anew beside the old one
LATENESS_S = 10
SETTLE_S = 20.0


@dataclass(slots=True)
class Soaked:
    """What a run saw."""

    events: int = 0
    seconds: float = 0.0
    rss: list[int] = field(default_factory=list)  # each second
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    settled_s: float = -1.0  # from the last event until the lag was 0; below 0: it never was

    def _ends(self, of: list[int]) -> tuple[float, float]:
        """Median behind the warm-up, median at the end."""
        sixth = max(len(of) // 6, 1)
        return median(of[2 * sixth : 3 * sixth]), median(of[-sixth:])

    @property
    def growth(self) -> float:
        """Of resident memory, as a share.

        >>> round(Soaked(rss=[5, 9, 10, 10, 11, 11]).growth, 3)
        0.1
        """
        first, last = self._ends(self.rss)
        return last / first - 1

    @property
    def more_descriptors(self) -> float:
        """How many file descriptors were open at the end that were not behind the warm-up."""
        first, last = self._ends(self.descriptors)
        return last - first

    @property
    def well(self) -> bool:
        """Nothing grew, and nothing was left to do."""
        return self.growth < GROWTH and self.more_descriptors <= SPARE and self.settled_s >= 0

    def line(self) -> dict[str, object]:
        """The last line."""
        first, last = self._ends(self.rss)
        return {
            "minutes": round(self.seconds / 60, 1),
            "events": self.events,
            "rss_mb_after_warm_up": round(first / 1e6, 1),
            "rss_mb_at_end": round(last / 1e6, 1),
            "growth": round(self.growth, 4),
            "descriptors_after_warm_up": self._ends(self.descriptors)[0],
            "descriptors_at_end": self._ends(self.descriptors)[1],
            "threads_at_end": self._ends(self.threads)[1],
            "lag_zero_after_s": round(self.settled_s, 2),
        }


def soaked(settings: Settings) -> Settings:
    """The settings with an allowed lateness that a short run is well beyond."""
    features = FeatureSettings(lateness=timedelta(seconds=LATENESS_S))
    return settings.model_copy(update={"features": features})


def soak(
    deployment: Deployment,
    seconds: float,
    rate: int = 400,
    users: int = 500,
    say: Callable[[str], None] = print,
) -> Soaked:
    """Load one worker for that long, then wait until it has nothing left to do."""
    found = Soaked()
    worker = psutil.Process(deployment.start("soaked").pid)
    began = time.monotonic()
    number = 0
    while (passed := time.monotonic() - began) < seconds:
        due = int(passed * rate) - found.events
        if due:
            now_ms = int(time.time() * 1000)
            produce(deployment.settings, events(due, users, now_ms, 0.5, seed=number))
            found.events += due
            number += 1
        found.rss.append(worker.memory_info().rss)
        found.descriptors.append(worker.num_fds())
        found.threads.append(worker.num_threads())
        if number % 30 == 0:
            say(f"{found.events:,} events, {found.rss[-1] / 1e6:.1f} MB, "
                f"{found.descriptors[-1]} descriptors")  # fmt: skip
        time.sleep(max(0.0, 1.0 - (time.monotonic() - began - passed)))
    found.seconds = time.monotonic() - began
    try:
        found.settled_s = deployment.settle(SETTLE_S)
    except AssertionError as error:
        say(str(error))
    return found


def main() -> int:
    """One run on a stack of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=int, default=400, help="events a second")
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--folder", type=Path, default=None)
    chosen = parser.parse_args()
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="livevalue-soak-"))
    with Stack.started(folder / "stack") as stack:
        settings = soaked(
            deployment_settings(stack.bootstrap, stack.redis_url, "soak.", worker={"clock": "wall"})
        )
        with Deployment(settings, folder, forks=False) as deployment:
            found = soak(deployment, 60 * chosen.minutes, chosen.rate, chosen.users)
    print(json.dumps(found.line()), flush=True)
    return 0 if found.well else 1


if __name__ == "__main__":
    sys.exit(main())
