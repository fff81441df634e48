"""`make chaos`: workers, Redis and broker are killed at random moments; then everything is counted.

    python -m benchmarks.chaos [--seed N] [--events N] [--folder DIR]

Prints what happens as it happens, and last one line of JSON: {events, kills, lost,
applied_twice, outputs_missing, outputs_twice}; all but the first two are to be 0, else exit 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.e2e.faults import Chaos, Scenario


def main() -> int:
    """Run one scenario and print its line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--events", type=int, default=Scenario.events)
    parser.add_argument("--folder", type=Path, default=None)
    chosen = parser.parse_args()
    scenario = Scenario(events=chosen.events, seed=chosen.seed)
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="livevalue-chaos-"))
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    say(f"seed {scenario.seed}, logs in {folder}")
    result = Chaos(scenario, folder, say).run()
    say(f"{dict(result.done)}, {result.undone} positions rolled back")
    for example in result.audit.examples:
        print(example)
    print(json.dumps(result.line()), flush=True)
    return 0 if result.audit.clean else 1


if __name__ == "__main__":
    sys.exit(main())
