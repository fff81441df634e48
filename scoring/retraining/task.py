"""What a search is judged on: rows to train on and rows to be judged by, of one reading of a log.

Nothing that arrived at or after `until` is looked at. Where none is given it is the end of the log
at the first call, which the journal keeps: a live log grows.

The newest mature rolling cut-offs validate; the older ones train, with labels that were mature by
the first validation cut-off, so that each trial is judged forward in time on all users known, as it
would serve.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore import times
from featurestore.columns import NO_TIME, split
from featurestore.fold_settings import FoldSettings
from featurestore.settings import FeatureSettings
from featurestore.wording import counted
from scoring.errors import TooLittleData
from scoring.retraining.candidate import fold_log, refuse_scarce
from scoring.retraining.journal import Journal
from scoring.retraining.origins import trimmed
from scoring.retraining.scan import LogSummary, check, scan
from scoring.retraining.settings import RetrainSettings
from scoring.settings import ModelSettings
from scoring.training.examples import Examples, Log
from scoring.training.recipes import Progress

WINDOWS = 3  # newest mature cut-offs that validate, at most
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class View:
    """What a search looks at of a log that may grow: what it showed then, before `until_ms`."""

    asked_ms: int | None  # the end asked for
    until_ms: int  # no later than that, and just past what the log held
    summary: LogSummary  # so that cut-offs and the users drawn stay the same

    def as_json(self) -> dict[str, Any]:
        """Plain values, for the journal."""
        return asdict(self)


def kept_view(journal: Journal, until_ms: int | None) -> View | None:
    """Of the search in a journal, None where none was begun; ScoringError if of another end."""
    kept = journal.view
    if kept is None:
        return None
    view = View(kept["asked_ms"], kept["until_ms"], LogSummary(**kept["summary"]))
    if until_ms not in (None, view.asked_ms, view.until_ms):
        journal.refuse(f"up to {times.text(view.asked_ms or view.until_ms)}, not --until")
    return view


@dataclass(frozen=True, slots=True)
class Task:
    """What all trials share: rows to train on, rows to be judged by."""

    train: Examples
    judge: Examples  # all labels of `column` mature
    column: int  # of the horizon that is judged
    log: str  # hash of what the log shows within `view`
    view: View

    @property
    def horizon_days(self) -> int:
        """Days of the horizon judged."""
        return self.judge.horizons_s[self.column] // DAY_S


def prepare(
    log: Callable[[], Log],
    model: ModelSettings,
    features: FeatureSettings,
    sources: Sequence[str],
    until_ms: int | None = None,
    kept: View | None = None,
    settings: RetrainSettings | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Task:
    """Fold `log`, called twice as by retrain, up to `until_ms`; TooLittleData as by retrain.

    `kept`: the view of a search that is gone on with; the log is then called once.
    """
    settings = settings or RetrainSettings()
    progress("scan", 0, None)
    view = kept or _view(log(), until_ms)
    if not view.summary.events and view.asked_ms is not None:
        raise TooLittleData("no event of a known user before the end asked for: check --until")
    if kept is None:  # else it was checked at the first call
        check(view.summary, flat_prices=settings.flat_prices)
    horizons_s = tuple(days * DAY_S for days in model.horizons_days)
    before = _until(log(), view.until_ms)
    examples = fold_log(before, view.summary, features, sources, horizons_s, settings, progress)
    refuse_scarce(examples)
    if not examples.between.any():
        raise TooLittleData("the log holds no positive value event to predict: check what is value")
    lateness_ms = int(FoldSettings.of(features, sources).lateness_ms.max())
    headline = model.horizons_days.index(int(model.headline.removeprefix("d")))
    for column in range(headline, -1, -1):
        windows = _validation(examples, column, lateness_ms)
        if len(windows):
            return _task(examples, column, windows, lateness_ms, view)
    raise TooLittleData(
        "no mature validation cut-off has a mature training cut-off before it: the labels of"
        f" {counted(horizons_s[0] // DAY_S, 'day')} are needed twice over, so give a longer log"
    )


def _view(log: Log, asked_ms: int | None) -> View:
    """All that a log holds before `asked_ms`, by its own clock."""
    newest = NO_TIME

    def watched() -> Log:
        nonlocal newest
        for partition, batch in _until(log, asked_ms):
            for found in (batch.log_ms, [one.record_ms for one in batch.erases]):
                newest = max(newest, int(np.max(found, initial=NO_TIME)))
            yield partition, batch

    summary = scan(watched())
    return View(asked_ms, newest + 1, summary)


def _until(log: Log, until_ms: int | None) -> Log:
    """The log as it stood at `until_ms`; users who come later leave no trace."""
    for partition, batch in log:
        yield partition, batch if until_ms is None else split(batch, until_ms)[0]


def _validation(examples: Examples, column: int, lateness_ms: int) -> npt.NDArray[np.int64]:
    """Newest mature cut-offs with value, as many as leave labels of that horizon to train on."""
    mature = examples.mask[:, column]
    paid = mature & (examples.value[:, column] > 0)
    windows = np.unique(examples.window[paid])
    reach = examples.horizons_s[column] * 1000 + lateness_ms
    for count in range(min(WINDOWS, len(windows)), 0, -1):
        first = examples.cutoffs_ms[windows[-count]]
        if (examples.cutoffs_ms[examples.window[mature]] + reach <= first).any():
            return windows[-count:]
    return windows[:0]


def _task(
    examples: Examples, column: int, windows: npt.NDArray[np.int64], lateness_ms: int, view: View
) -> Task:
    first = int(examples.cutoffs_ms[windows[0]])
    ends = examples.cutoffs_ms[examples.window][:, None] + lateness_ms
    ends = ends + np.array(examples.horizons_s, np.int64) * 1000
    known = replace(examples, mask=examples.mask & (ends <= first), clock_ms=first)
    train = trimmed(known.rows(np.flatnonzero(known.mask.any(axis=1))))
    judged = np.flatnonzero(np.isin(examples.window, windows) & examples.mask[:, column])
    return Task(train, examples.rows(judged), column, _shown(examples), view)


def _shown(examples: Examples) -> str:
    """Hash of the exact part of examples: who, when, and what came. Floats differ by machine."""
    found = hashlib.sha256("\0".join(examples.users).encode())
    for part in (
        examples.cutoffs_ms,
        np.array(examples.horizons_s),
        examples.user,
        examples.window,
        examples.value,
        examples.mask,
        examples.position,
        np.array([examples.log_start_ms, examples.clock_ms]),
    ):
        found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()
