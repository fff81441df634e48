"""evaluate --staleness, evaluate --anchor: what real time is worth, and value since install."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from livevalue.jobs.evaluating import Progress, read, trained_as
from scoring.judging.anchored import anchored
from scoring.judging.history import Log
from scoring.judging.question import Question
from scoring.judging.staleness import Stale, staleness
from streams.settings import Settings

__all__ = ["fresh_and_stale", "read", "since_first_event"]


def fresh_and_stale(
    log: Log, settings: Settings, question: Question, stales: Sequence[Stale], progress: Progress
) -> list[dict[str, Any]]:
    """Rows of `staleness`."""
    return staleness(
        log,
        trained_as(settings, question),
        stales,
        settings.features,
        settings.kafka.sources,
        lambda stage: progress(stage, 0, None),
    )


def since_first_event(
    log: Log, settings: Settings, question: Question, ages_days: Sequence[float], progress: Progress
) -> list[dict[str, Any]]:
    """Rows of `lifetime`."""
    return anchored(
        log,
        trained_as(settings, question),
        ages_days,
        settings.features,
        settings.kafka.sources,
        lambda stage: progress(stage, 0, None),
    )
