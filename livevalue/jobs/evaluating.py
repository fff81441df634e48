"""evaluate: protocol T on a log of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from livevalue.rejections import lines, refuse_mixed
from livevalue.sources import FileOptions, Source
from scoring.judging import evaluation
from scoring.judging.contenders import DAILY
from scoring.judging.evaluation import Question, Report
from scoring.judging.history import Log
from scoring.judging.question import check_models
from scoring.retraining.scan import check, scan
from scoring.training.families import passed_over
from scoring.training.trainable import SERVED, accepted
from streams.settings import Settings

ARRIVALS = "the log holds no arrival times: events count as arrived at once"
Progress = Callable[[str, int, int | None], None]  # what is being done, steps done, in all


def evaluate(
    settings: Settings,
    src: Sequence[str],
    options: FileOptions,
    question: Question,
    progress: Progress,
) -> Report:
    """Read the log once, then answer for each cut-off."""
    question, notes = trained_as(settings, question)
    log, left_out = read(settings, src, options, progress)
    report = evaluation.evaluate(log, question, settings.features, settings.kafka.sources, progress)
    report.notes += [*left_out, *notes]
    return report


def trained_as(settings: Settings, question: Question) -> tuple[Question, list[str]]:
    """The question with the settings to train by, and what to note of them.

    Asked before a log is read, which may take long: ScoringError where `served` cannot be trained
    so, or a model is unknown.
    """
    check_models(question.models)
    how = settings.training
    over = passed_over([DAILY.get(name, name) for name in question.models], how)
    asked = replace(question, training=accepted(how) if SERVED in question.models else how)
    return asked, [over] if over else []


def read(
    settings: Settings, src: Sequence[str], options: FileOptions, progress: Progress
) -> tuple[Log, list[str]]:
    """The log, and what to note of it; what nothing can be learned from is refused."""
    source = Source(src, settings, options)
    log, taken, arrived = [], 0, False
    for partition, batch in source.batches():
        log.append((partition, batch))
        taken += batch.size
        arrived = arrived or bool((batch.log_ms > batch.events["time_ms"]).any())
        progress("reading the log, events", taken, None)
    left_out = source.rejections()
    refuse_mixed(left_out, taken)
    check(scan(log), flat_prices=settings.retrain.flat_prices)
    return log, [*([] if arrived else [ARRIVALS]), *lines(left_out)]
