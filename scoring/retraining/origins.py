"""Rolling origins: what a recipe would have said at earlier moments, and what then came true.

An origin is a moment of the log. A recipe is refitted there on what was known then, labels that
were mature included, and scores every user seen before it; the labels of the window after it judge
it. Origins stand `step_days` apart, the newest where the judged horizon has just become mature; on
a short log there are fewer, and the plan says so. All of it comes out of one fold of the log, since
an example at a cut-off holds what had arrived by then and nothing later.

Refits learn from the cut-offs of the retrain's own grid that lie before the origin, so from fewer
than the last fit does, and from at most `origin_users` users.

Shapes: O origins; N rows, H horizons as in scoring.training.examples. Times are integer
milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from featurestore import times
from featurestore.wording import counted
from scoring.errors import TooLittleData
from scoring.generation import Generation
from scoring.retraining.corrector import factor
from scoring.retraining.settings import RetrainSettings
from scoring.training.draws import drawn
from scoring.training.examples import DAY_MS, Examples
from scoring.training.recipes import Progress, Recipe, Values, expected, fit
from scoring.training.rows import Ints

LEAST_CUTOFFS = 2  # of the grid with a mature label at an origin, else it has nothing to learn from


@dataclass(frozen=True, slots=True)
class Plan:
    """Which origins a log has room for."""

    at_ms: Ints  # (O,) ascending
    column: int  # of the horizon that judges
    days: int  # its length
    asked: int

    @property
    def note(self) -> str:
        """Why there are fewer than asked for; empty if there are not."""
        if len(self.at_ms) >= self.asked:
            return ""
        return (
            f"{len(self.at_ms)} of {counted(self.asked, 'origin')}: the log is too short for more"
            f" windows of {counted(self.days, 'day')} with mature labels before and after them"
        )


@dataclass(frozen=True, slots=True)
class Said:
    """One recipe at one origin."""

    at_ms: int
    column: int  # of the horizon judged
    rows: Examples  # all users seen before it, their labels mature
    expected: Values  # (N,) of the judged horizon
    factor: float  # of the level corrector, fitted there
    trained_on: int  # rows


def plan(
    clock_ms: int,
    horizons_s: Sequence[int],
    lateness_ms: int,
    grid_ms: Ints,
    settings: RetrainSettings,
) -> Plan:
    """Origins before `clock_ms` which are mature, and before which enough of the grid is.

    >>> days = np.arange(20, 360, 28) * DAY_MS
    >>> found = plan(373 * DAY_MS, [7 * 86400, 30 * 86400], 0, days, RetrainSettings())
    >>> (found.at_ms // DAY_MS).tolist(), found.days, found.note
    ([223, 253, 283, 313, 343], 30, '')
    """
    judged = [h for h, s in enumerate(horizons_s) if s <= settings.judged_days * 86_400]
    column = judged[-1] if judged else 0
    window_ms = horizons_s[column] * 1000 + lateness_ms
    newest = clock_ms - window_ms
    at = newest - np.arange(settings.origins, dtype=np.int64)[::-1] * settings.step_days * DAY_MS
    mature = (grid_ms[None, :] + window_ms <= at[:, None]).sum(axis=1)
    days = horizons_s[column] // 86_400
    return Plan(at[mature >= LEAST_CUTOFFS], column, days, settings.origins)


def known_at(examples: Examples, moment_ms: int, lateness_ms: int) -> Examples:
    """The rows with a label that was mature at a moment, as they were known then."""
    ends = examples.cutoffs_ms[examples.window][:, None] + lateness_ms
    ends = ends + np.array(examples.horizons_s, np.int64) * 1000
    known = replace(examples, mask=examples.mask & (ends <= moment_ms), clock_ms=moment_ms)
    return trimmed(known.rows(np.flatnonzero(known.mask.any(axis=1))))


def trimmed(rows: Examples) -> Examples:
    """Sequences cut where the rows' last carry is read: later steps neither train nor scale."""
    used = np.unique(rows.sequence)
    lengths = np.zeros(len(rows.starts) - 1, np.int64)
    np.maximum.at(lengths, rows.sequence, rows.position)
    lengths = lengths[used]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    at = np.arange(starts[-1]) + np.repeat(rows.starts[used] - starts[:-1], lengths)
    return replace(
        rows,
        sequence=np.searchsorted(used, rows.sequence).astype(np.int64),
        tokens=rows.tokens[at],
        starts=starts,
    )


def judged_rows(examples: Examples, at_ms: int, column: int) -> Examples:
    """All users seen before an origin, with their mature labels."""
    window = int(np.searchsorted(examples.cutoffs_ms, at_ms))
    return examples.rows((examples.window == window) & examples.mask[:, column])


def refits(
    recipe: Recipe,
    examples: Examples,
    grid_ms: Ints,
    plan: Plan,
    lateness_ms: int,
    settings: RetrainSettings,
    progress: Progress,
    whose: str,
) -> dict[int, Said]:
    """What a recipe says at each origin; those where it has too little to learn from are left out.

    `examples` hold the grid's cut-offs and the origins; `grid_ms` are those that are trained on.
    """
    on_grid = np.isin(examples.cutoffs_ms[examples.window], grid_ms)
    share = min(1.0, settings.origin_users / max(1, len(examples.users)))
    if share < 1:
        few = np.array([drawn(user, share) for user in examples.users])
        on_grid &= few[examples.user]
    learned = examples.rows(on_grid)
    out: dict[int, Said] = {}
    for number, at_ms in enumerate(plan.at_ms.tolist(), 1):
        stage = f"{whose} at {times.text(at_ms)[:10]} ({number}/{len(plan.at_ms)})"
        known = known_at(learned, at_ms, lateness_ms)
        try:
            made = fit(known, recipe, progress=partial(_under, progress, stage)).whole
        except TooLittleData:
            continue
        out[at_ms] = said(made, examples, at_ms, plan, known)
    return out


def _under(progress: Progress, stage: str, part: str, done: int, total: int | None) -> None:
    progress(f"{stage}, {part}", done, total)


def said(
    made: Generation, examples: Examples, at_ms: int, plan: Plan, known: Examples | None = None
) -> Said:
    """What a generation says at an origin; `known` are the rows that it was fitted on."""
    rows = judged_rows(examples, at_ms, plan.column)
    level = 1.0 if known is None else factor(made, known, plan.column)
    values = expected(made, rows)[0][:, plan.column]
    return Said(at_ms, plan.column, rows, values, level, 0 if known is None else len(known))
