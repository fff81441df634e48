"""`make upgrade`: two workers of two versions under load: a rolling upgrade, back, and up again.

    python -m benchmarks.upgrade [--old COMMIT] [--folder DIR]

The old version's code comes from `git archive`; without a commit it is the last one that wrote
states of another format under default settings. Both workers are restarted one by one on the new
code while events arrive; then one is put back on the old code, which must halt where it meets
states of a format it does not know, and change nothing; then it is upgraded again. Afterwards
everything is counted: the digest of the live store against a replay of the log, (user, revision)
seen twice on `scores`, dead letters, halts while upgrading. Prints last one line of JSON; exit 1
where a count is not as it must be.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from livevalue.embedded import Stack
from scoring.settings import ModelSettings
from streams.row import split
from tests.e2e.deployment import (
    ROOT,
    Deployment,
    WorkerProcess,
    deployment_settings,
    some_events,
)
from tests.parity.onstack import live, replayed

RATE = 200  # events a second
PHASE_S = 12.0  # longer than a session timeout, so that each assignment serves for a while
USERS = 200
# The last commit that writes states of another format under default settings, so that the worker
# put back on it must refuse some. Formats 3 and 4 are of users with edges or words, which are off.
OLD = "0796049^"


class Feeder:
    """Events at a steady rate, from a thread of its own."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.sent = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._deployment.flush()

    def _run(self) -> None:
        began = time.monotonic()
        for source, event in some_events(10_000_000, USERS):
            if self._stopped.is_set():
                return
            self._deployment.send(source, event)
            self.sent += 1
            ahead = self.sent / RATE - (time.monotonic() - began)
            if ahead > 0.05:
                time.sleep(ahead)


def archive(commit: str, folder: Path) -> Path:
    """The code as of a commit, in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "x", "-C", str(folder)], input=packed.stdout, check=True)
    return folder


def formats(deployment: Deployment) -> Counter[int]:
    """How many states of each format the store holds."""
    found: Counter[int] = Counter()
    for key in deployment.redis.scan_iter("lv:*:s:*", count=1000):
        row: Any = deployment.redis.get(key)
        if row:
            found[split(row)[0][0]] += 1
    return found


def halts(worker: WorkerProcess) -> list[str]:
    """What a worker said of each partition that it halted."""
    return [str(line.get("error", line)) for line in worker.lines("partition halted")]


def twice(deployment: Deployment) -> int:
    """(user, revision) seen twice on `scores`."""
    seen = Counter(
        (record.key, json.loads(record.value)["revision"])
        for record in deployment.read(deployment.settings.kafka.scores)
        if record.value
    )
    return sum(count - 1 for count in seen.values())


def roll(deployment: Deployment, old: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The three moves; -> what was counted."""
    number = 0

    def start(root: Path) -> WorkerProcess:
        nonlocal number
        number += 1
        name = f"{'old' if root == old else 'new'}{number}"
        worker = WorkerProcess(deployment.settings, deployment.folder / f"{name}.log", root)
        deployment.workers[name] = worker
        say(f"{name} started")
        return worker

    workers = [start(old), start(old)]
    feeder = Feeder(deployment)
    feeder.start()
    time.sleep(PHASE_S)
    before = formats(deployment)
    say(f"formats of states {dict(before)}")
    while_upgrading: list[str] = []
    for at in range(2):
        workers[at].stop()
        while_upgrading += halts(workers[at])
        workers[at] = start(ROOT)
        time.sleep(PHASE_S)
        say(f"formats of states {dict(formats(deployment))}")
    while_upgrading += [text for worker in workers for text in halts(worker)]

    workers[1].stop()
    downgraded = start(old)
    time.sleep(PHASE_S)
    refusals = halts(downgraded)
    say(f"downgraded: {refusals[:1]}")
    downgraded.stop()
    workers[1] = start(ROOT)
    time.sleep(PHASE_S)
    feeder.stop()
    settled_s = deployment.settle(60)
    after = formats(deployment)
    exits = [worker.stop() for worker in workers]
    now, again = live(deployment.settings), replayed(deployment.settings, "kafka")
    return {
        "events": feeder.sent,
        "applied": now["applied"],
        "digest_equal": now["digest"] == again["digest"],
        "formats_before": dict(before),
        "formats_after": dict(after),
        "halts_while_upgrading": len(while_upgrading),
        "halts_of_the_downgraded": len(refusals),
        "said": refusals[0] if refusals else "",
        "outputs_twice": twice(deployment),
        "letters": len(deployment.read(deployment.settings.kafka.dlq)),
        "settled_s": round(settled_s, 1),
        "exits": exits,
    }


def main() -> int:
    """One run on a stack of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--old", default=OLD, help="commit of the version to upgrade from (%(default)s)"
    )
    parser.add_argument("--folder", type=Path, default=None)
    chosen = parser.parse_args()
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="livevalue-upgrade-"))
    old = archive(chosen.old, folder / "old")
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    with Stack.started(folder / "stack") as stack:
        settings = deployment_settings(stack.bootstrap, stack.redis_url, "up.", partitions=4)
        # said to both versions: a default that has changed is another fingerprint
        knots = ModelSettings(silence_days=ModelSettings().silence_days)
        settings = settings.model_copy(update={"model": knots})
        with Deployment(settings, folder, forks=False) as deployment:
            found = roll(deployment, old, say)
    print(json.dumps(found), flush=True)
    well = (
        found["digest_equal"]
        and found["applied"] == found["events"]
        and not found["halts_while_upgrading"]
        and not found["outputs_twice"]
        and not found["letters"]
        and found["exits"] == [0, 0]
    )
    if set(found["formats_before"]) != set(found["formats_after"]):
        well = well and found["halts_of_the_downgraded"] > 0
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
