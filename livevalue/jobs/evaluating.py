"""evaluate: protocol T on a log of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from livevalue.rejections import lines
from livevalue.sources import FileOptions, Source
from scoring import evaluation
from scoring.evaluation import Question, Report
from streams.settings import Settings


def evaluate(
    settings: Settings,
    src: Sequence[str],
    options: FileOptions,
    question: Question,
    told: Callable[[str], None],
) -> Report:
    """Read the log once, then answer for each cut-off."""
    told("reading the log")
    source = Source(src, settings, options)
    log = list(source.batches())
    question = replace(question, training=settings.training)
    report = evaluation.evaluate(log, question, settings.features, settings.kafka.sources, told)
    report.notes += lines(source.rejections())
    return report
