"""tune: better training settings, searched on a log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from featurestore import times
from livevalue.rejections import readings
from livevalue.sources import FileOptions, Source
from scoring.errors import TooLittleData
from scoring.retraining import tuning
from scoring.retraining.journal import opened
from scoring.retraining.task import kept_view, prepare
from scoring.retraining.tuning import Tuned
from scoring.training.families import family
from scoring.training.trainable import accepted
from streams.settings import Settings


def tune(
    settings: Settings,
    src: Sequence[str],
    options: FileOptions,
    journal: Path,
    *,
    until_ms: int | None,
    trials: int,
    seed: int,
    say: Callable[[str], None],
    progress: Callable[[str, int, int | None], None],
) -> tuple[Tuned, dict[str, Any]]:
    """Fold the log once, then try; (result, what of the log was left out)."""
    family(accepted(settings.training).family)  # only nets have what is searched
    source = Source(src, settings, options)
    # before the log is read, which may take long: is the journal free, and may it be written?
    with opened(journal) as held:
        kept = kept_view(held, until_ms)
        try:
            task = prepare(
                readings(source),
                settings.model,
                settings.features,
                settings.kafka.sources,
                until_ms,
                kept,
                settings.retrain,
                progress,
            )
        except TooLittleData:
            if kept is None:
                raise
            held.refuse("of another log")  # that one was long enough
        say(
            f"{'as kept in' if kept else 'kept in'} {journal}: the log before"
            f" {times.text(task.view.until_ms)}, whatever arrives later"
        )
        tuned = tuning.tune(
            task, held, trials=trials, base=settings.training, seed=seed, progress=progress
        )
        return tuned, source.rejections()
