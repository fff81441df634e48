"""Protocol T: how good are values, judged as they would have been used.

At a cut-off T a model knows what had arrived before T, and nothing else: its labels come from
earlier rolling cut-offs whose windows end by T. It then scores every user seen before T, and its
value is held against what the user went on to spend in [T, T + horizon). A model that trains is
exported and loaded again, and scores from the folded states: what is judged is what would serve.

One window of 91 days is too noisy to gate on (nGini +- .05): give several cut-offs, and read the
interval of a comparison, which draws users in pairs (scoring.judging.bootstrap).

    question  ->  judging, one cut-off after the other  ->  scored  ->  comparing  ->  Report
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from featurestore.settings import FeatureSettings
from featurestore.wording import counted
from scoring.judging.comparing import POOLED, Compared, compared
from scoring.judging.contenders import DEFAULT, model_names
from scoring.judging.history import Log
from scoring.judging.judge import Judge
from scoring.judging.question import (
    BadQuestion,
    Case,
    Population,
    Question,
    choose_cutoffs,
    net_horizons,
)
from scoring.judging.scored import Scored
from scoring.training.forecasts import score

__all__ = [
    "DEFAULT",
    "BadQuestion",
    "Log",
    "Population",
    "Question",
    "Report",
    "choose_cutoffs",
    "evaluate",
    "model_names",
    "net_horizons",
    "score",
]


Progress = Callable[[str, int, int], None]  # what is being done, models done, in all


@dataclass(slots=True)
class Report:
    """Answers, and how they compare; `as_json` is the shape of `evaluate --json`."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    pooled: list[dict[str, Any]] = field(default_factory=list)  # a model over cut-offs and seeds
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)  # what `runs` was made of, for charts

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        names = ("runs", "pooled", "comparisons", "notes")
        return {name: getattr(self, name) for name in names}


def evaluate(
    log: Log,
    question: Question,
    features: FeatureSettings,
    sources: Sequence[str],
    progress: Progress = lambda *_: None,
) -> Report:
    """Answer a question about a log: (partition, batch) pairs, each partition in log order."""
    case = Case.of(log, question, features, sources)
    report = Report(notes=case.history.notes)
    total = len(question.as_of_ms) * len(question.models)
    done: set[tuple[int, str]] = set()

    def told(what: str) -> None:
        progress(what, len(done), total)

    for as_of in question.as_of_ms:
        judge = Judge(case, as_of, told)
        for one in judge.scores():
            report.scored.append(one)
            done.add((as_of, one.model))
        report.notes += [note for note in judge.notes if note not in report.notes]
    told("drawing users for the intervals")
    found = list(compared(report.scored, question))
    report.runs = [_run(one, question, found) for one in report.scored]
    if question.label_days is not None:
        report.notes.append(
            f"what came true is of {counted(question.label_days, 'day')}, longer than what was"
            " predicted: read the ranking, not the level"
        )
    first, *others = question.models
    for part in found:
        report.comparisons += part.differences(first, others)
        if part.as_of == POOLED or len(question.as_of_ms) == 1:
            report.pooled += part.pooled()
    return report


def _run(one: Scored, question: Question, found: Sequence[Compared]) -> dict[str, Any]:
    """One of `runs`, with the intervals of its cut-off."""
    run = one.as_json(question.population)
    here = next(c for c in found if c.as_of == run["as_of"] and c.days == one.days)
    judged = question.judged_days(one.days)
    return {**run, "label_days": judged, "intervals": here.intervals(one.label)}
