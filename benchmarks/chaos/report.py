"""A run as one row of the table in docs/reliability.md."""

from __future__ import annotations

import subprocess
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.chaos.faults import KINDS
from benchmarks.chaos.runner import Result

COLUMNS = (
    *("date", "commit", "seed", "records", "faults", "undone", "restarts", "lost", "twice"),
    *("outputs missing", "outputs twice", "letters missing/twice/wrong of", "other", "replay ≠"),
)


def header() -> str:
    """The table's first two lines."""
    return f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def row(result: Result, when: datetime | None = None) -> str:
    """One line of the table."""
    found, done = result.audit, result.done
    faults = _said(done)
    if vain := _said(result.in_vain):
        faults += f" (in vain: {vain})"
    if result.coordinators:
        faults += f", {result.coordinators} coordinator restarted"
    cells = (
        f"{when or datetime.now(UTC):%Y-%m-%d}",
        commit(),
        result.scenario.seed,
        f"{found.records:,}",
        faults,
        "/".join(f"{n:,}" for n in result.undone) or "-",
        result.restarts,
        found.lost,
        found.applied_twice,
        found.outputs_missing,
        found.outputs_twice,
        f"{found.letters_missing}/{found.letters_twice}/{found.letters_wrong} of {found.letters:,}",
        found.users_wrong + found.strangers + found.backwards,
        f"{result.different} of {found.users:,}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def commit() -> str:
    """What was run, `-dirty` where it is no commit; `-` without git."""
    words = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return "-"
    return done.stdout.strip() or "-"


def _said(faults: Counter[str]) -> str:
    return ", ".join(f"{faults[kind]} {kind}" for kind in KINDS if faults[kind])
