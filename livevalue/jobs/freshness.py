"""evaluate --staleness, evaluate --anchor: what real time is worth, and value since install."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from livevalue.jobs.evaluating import Progress, read, trained_as
from scoring.judging.anchored import LEAST, anchored
from scoring.judging.contenders import DEFAULT
from scoring.judging.history import Log
from scoring.judging.learned import askable
from scoring.judging.question import BadQuestion, Question
from scoring.judging.staleness import Stale, staleness
from streams.settings import Settings

__all__ = ["asked", "fresh_and_stale", "read", "since_first_event"]


def asked(settings: Settings, question: Question) -> tuple[Question, list[str]]:
    """As `trained_as`; of the models those that can be asked at any instant, BadQuestion if none.

    Who names others is told so; those of the default set are left out without a word.
    """
    question, notes = trained_as(settings, question)
    models = askable(question.models)
    others = [name for name in question.models if name not in models]
    if others and question.models != DEFAULT:
        notes.append(f"{' and '.join(others)} cannot be asked at any instant: left out")
    return replace(question, models=models), notes


def fresh_and_stale(
    log: Log, settings: Settings, question: Question, stales: Sequence[Stale], progress: Progress
) -> list[dict[str, Any]]:
    """Rows of `staleness`; BadQuestion where there are none."""
    rows = staleness(
        log,
        question,
        stales,
        settings.features,
        settings.kafka.sources,
        lambda stage: progress(stage, 0, None),
    )
    if not rows:
        raise BadQuestion(
            "nobody who could be scored after --as-of spent anything in a whole window of the log:"
            " take an earlier --as-of, a shorter --horizon or another --population"
        )
    return rows


def since_first_event(
    log: Log, settings: Settings, question: Question, ages_days: Sequence[float], progress: Progress
) -> list[dict[str, Any]]:
    """Rows of `lifetime`; BadQuestion where there are none."""
    rows = anchored(
        log,
        question,
        ages_days,
        settings.features,
        settings.kafka.sources,
        lambda stage: progress(stage, 0, None),
    )
    if not rows:
        raise BadQuestion(
            f"fewer than {LEAST} users who spent reach one of the --ages after --as-of, before a"
            " --horizon that ends within the log: take an earlier --as-of, or younger --ages"
        )
    return rows
