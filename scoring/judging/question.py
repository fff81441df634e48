"""What an evaluation is asked, and whether a log can answer it.

Times are integer milliseconds, UTC; horizons whole days.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from featurestore.fold_settings import FoldSettings
from featurestore.settings import FeatureSettings
from featurestore.wording import counted
from scoring.judging.contenders import DEFAULT, model_names
from scoring.judging.cutoffs import BadQuestion, Ints, choose_cutoffs, stamp
from scoring.judging.history import DAY, History, Log, NetBy
from scoring.judging.thresholds import Task
from scoring.settings import TrainingSettings

__all__ = [
    "BadQuestion",
    "Ints",
    "Population",
    "Question",
    "check_models",
    "check_question",
    "choose_cutoffs",
    "net_horizons",
    "stamp",
]

Population = Literal["all", "buyers", "prospects"]

SHORT_DAYS = (7, 30)  # horizons that a net learns beside the one asked for, as served


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the models."""

    as_of_ms: tuple[int, ...]
    horizons_days: tuple[int, ...]
    models: tuple[str, ...] = DEFAULT
    cutoffs_ms: tuple[int, ...] | None = None  # None: chosen for each `as_of`
    label_days: int | None = None  # what came true is of so many days; None: of the horizon
    net_by: NetBy = "user-day"
    population: Population = "buyers"
    task: Task = field(default_factory=Task)
    target_share: float = 0.2
    seeds: int = 1
    draws: int = 400  # of the bootstrap
    # of what trains; its seed is the first one
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def judged_days(self, days: int) -> int:
        """The window that a forecast of `days` is held against: how well does it rank beyond it?"""
        return self.label_days or days


@dataclass(frozen=True, slots=True)
class Case:
    """A question put to a log, and how that log is folded: the same at every cut-off."""

    log: Log
    history: History
    question: Question
    features: FeatureSettings
    sources: Sequence[str]

    @classmethod
    def of(
        cls, log: Log, question: Question, features: FeatureSettings, sources: Sequence[str]
    ) -> Case:
        """BadQuestion where the log cannot answer."""
        history = History.of(log, FoldSettings.of(features, sources))
        check_question(history, question)
        return cls(log, history, question, features, sources)


def check_models(models: Sequence[str]) -> None:
    """Refuse a name that no model has; needs no log."""
    unknown = [name for name in models if name not in model_names()]
    if unknown:
        raise BadQuestion(
            f"no model is called {unknown[0]!r}; there are {', '.join(model_names())}"
        )


def check_question(history: History, question: Question) -> None:
    """Refuse what the log cannot answer, in words that say what it can."""
    check_models(question.models)
    if not len(history.user):
        raise BadQuestion("the log holds no event of a known user: check --columns")
    label, longest = question.label_days, max(question.horizons_days)
    if label is not None and label < longest:
        raise BadQuestion(
            f"--label-horizon of {counted(label, 'day')} is shorter than --horizon"
            f" ({counted(longest, 'day')}): leave it out, or take a shorter --horizon"
        )
    for as_of in question.as_of_ms:
        for days in map(question.judged_days, question.horizons_days):
            # a day-stamped log ends at the start of its last day
            if as_of + days * DAY > history.end_ms + DAY:
                reach = "reaches" if days == 1 else "reach"
                raise BadQuestion(
                    f"{counted(days, 'day')} from {stamp(as_of)} {reach} past the log's end"
                    f" ({stamp(history.end_ms)}): take an earlier --as-of or a shorter --horizon"
                )
        if not history.known(as_of).any():
            raise BadQuestion(
                f"nothing had arrived before {stamp(as_of)}; the log begins at"
                f" {stamp(history.start_ms)}: take a later --as-of"
            )


def net_horizons(asked: Sequence[int]) -> tuple[int, ...]:
    """Horizons that a net learns: those asked for, and the short ones that it is served with.

    >>> net_horizons([91])
    (7, 30, 91)
    """
    return tuple(sorted({*asked, *(d for d in SHORT_DAYS if d < max(asked))}))
