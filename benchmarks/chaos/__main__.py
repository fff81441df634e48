"""`make chaos`: workers, Redis and broker are killed at random moments; then everything is counted.

    python -m benchmarks.chaos [--short | --long] [--seeds 1,2,…] [--events N] [--faults kill=6,…]

Prints what happens as it happens, then a row for docs/reliability.md, and last one line of JSON:
{events, kills, lost, applied_twice, outputs_missing, outputs_twice, …}. All after `kills` must be
0, else the exit code is 1. Over several seeds the line adds them up. A fault counts only where it
did what it is for; one that was in vain is tried again, each kind at most three times as often as
it is asked for, and what is short of what was asked for is `faults_not_done`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from benchmarks.chaos import faults, report
from benchmarks.chaos.runner import LONG, Scenario, run

_EXAMPLE = """\
examples:
  python -m benchmarks.chaos                          # short: 20,000 messages, 10 faults
  python -m benchmarks.chaos --long --seeds 1,2,3,4,5 # 200,000 messages and 41 faults a seed
  python -m benchmarks.chaos --faults zombie=2,full=1,deaf_redis=1 --rate 200

kinds of faults:
"""


def main() -> int:
    """Run the seeds one after the other; print a row each and the line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=_EXAMPLE + (faults.__doc__ or "").split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--short",
        action="store_true",
        help="the default: what CI runs, with a seed and a rate of its own",
    )
    size.add_argument(
        "--long", action="store_true", help="200,000 messages, 2,000 users, 41 faults"
    )
    parser.add_argument("--seeds", "--seed", default=None, metavar="N,…", help="default: the clock")
    parser.add_argument("--events", type=int, metavar="N", help="messages, at least")
    parser.add_argument("--users", type=int, metavar="N")
    parser.add_argument("--rate", type=float, metavar="N", help="messages a second (400)")
    parser.add_argument("--workers", type=int, metavar="N", help="(2)")
    parser.add_argument("--partitions", type=int, metavar="N", help="(4)")
    parser.add_argument(
        "--faults", type=_counts, metavar="KIND=N,…", help="instead of the form's own"
    )
    parser.add_argument("--pause", type=_range, metavar="A-B", help="seconds between faults (1-3)")
    parser.add_argument("--deaf", type=float, metavar="S", help="of a server that is deaf (60)")
    parser.add_argument("--settle", type=float, metavar="S", help="patience afterwards (300)")
    parser.add_argument("--folder", type=Path, help="of logs and data; default: a temporary one")
    chosen = parser.parse_args()

    base = Scenario(events=200_000, users=2_000, faults=LONG) if chosen.long else Scenario()
    given = {
        "events": chosen.events,
        "users": chosen.users,
        "rate": chosen.rate,
        "workers": chosen.workers,
        "partitions": chosen.partitions,
        "faults": chosen.faults,
        "pause_s": chosen.pause,
        "deaf_s": chosen.deaf,
        "settle_s": chosen.settle,
    }
    base = replace(base, **{name: value for name, value in given.items() if value is not None})
    seeds = [int(n) for n in (chosen.seeds or str(int(time.time()))).split(",")]
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="livevalue-chaos-"))
    total: Counter[str] = Counter()
    rows, clean = [], True
    for seed in seeds:
        began = time.monotonic()

        def say(text: str, began: float = began) -> None:
            print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

        say(f"seed {seed}, logs in {folder / str(seed)}")
        result = run(replace(base, seed=seed), folder / str(seed), say)
        for example in result.audit.examples:
            print(example)
        if result.not_done:
            print(f"in vain, however often tried: {dict(result.not_done)}")
        rows.append(report.row(result))
        print(rows[-1], flush=True)
        # Keys that are 0 stay in: a Counter's update keeps them.
        total.update(result.line())
        clean = clean and result.clean
    print("\n" + report.header(), *rows, sep="\n")
    print(json.dumps(dict(total)), flush=True)
    return 0 if clean else 1


def _counts(text: str) -> dict[str, int]:
    """`kill=6,redis=2`."""
    found = {}
    for part in text.split(","):
        kind, _, count = part.partition("=")
        if kind not in faults.KINDS:
            raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(faults.KINDS)}")
        found[kind] = int(count or 1)
    return found


def _range(text: str) -> tuple[float, float]:
    """`1-3`."""
    low, _, high = text.partition("-")
    return float(low), float(high or low)


if __name__ == "__main__":
    sys.exit(main())
