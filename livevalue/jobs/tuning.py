"""tune: better training settings, searched on a log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from livevalue.sources import FileOptions, Source
from scoring import tuning
from scoring.tuning import Tuned
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
    progress: Callable[[str, int, int | None], None],
) -> tuple[Tuned, dict[str, Any]]:
    """Fold the log once, then try; (result, what of the log was left out)."""
    source = Source(src, settings, options)
    task = tuning.prepare(
        source.batches,
        settings.model,
        settings.features,
        settings.kafka.sources,
        until_ms,
        progress=progress,
    )
    tuned = tuning.tune(
        task, journal, trials=trials, base=settings.training, seed=seed, progress=progress
    )
    return tuned, source.rejections()
