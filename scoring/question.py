"""What an evaluation is asked, and whether a log can answer it.

Times are integer milliseconds, UTC; horizons whole days.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from featurestore import times
from scoring.contenders import DEFAULT, model_names
from scoring.errors import ScoringError
from scoring.history import DAY, History, NetBy
from scoring.settings import TrainingSettings

Population = Literal["all", "buyers", "prospects"]
Ints = npt.NDArray[np.int64]

SHORT_DAYS = (7, 30)  # horizons that a net learns beside the one asked for, as served
CUTOFFS = 8  # chosen from half-way to the last mature one


class BadQuestion(ScoringError):
    """The evaluation cannot be done as asked; the message says what can."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the models."""

    as_of_ms: tuple[int, ...]
    horizons_days: tuple[int, ...]
    models: tuple[str, ...] = DEFAULT
    cutoffs_ms: tuple[int, ...] | None = None  # None: chosen for each `as_of`
    net_by: NetBy = "user-day"
    population: Population = "all"
    seeds: int = 1
    draws: int = 400  # of the bootstrap
    # of what trains; its seed is the first one
    training: TrainingSettings = field(default_factory=TrainingSettings)


def check_question(history: History, question: Question) -> None:
    """Refuse what the log cannot answer, in words that say what it can."""
    unknown = [name for name in question.models if name not in model_names()]
    if unknown:
        raise BadQuestion(
            f"no model is called {unknown[0]!r}; there are {', '.join(model_names())}"
        )
    if not len(history.user):
        raise BadQuestion("the log holds no event of a known user: check --columns")
    for as_of in question.as_of_ms:
        for days in question.horizons_days:
            # a day-stamped log ends at the start of its last day
            if as_of + days * DAY > history.end_ms + DAY:
                raise BadQuestion(
                    f"{days} days from {stamp(as_of)} reach past the log's end"
                    f" ({stamp(history.end_ms)}): take an earlier --as-of or a shorter --horizon"
                )
        if not history.known(as_of).any():
            raise BadQuestion(
                f"nothing had arrived before {stamp(as_of)}; the log begins at"
                f" {stamp(history.start_ms)}: take a later --as-of"
            )


def choose_cutoffs(start_ms: int, as_of_ms: int, days: int, delay_ms: int = 0) -> Ints:
    """Training cut-offs whose windows of `days` end, all labels arrived, by `as_of_ms`.

    From half-way to the last of them, evenly: earlier ones know too little of their users.

    >>> (choose_cutoffs(0, 273 * DAY, 91) // DAY).tolist()
    [91, 104, 117, 130, 143, 156, 169, 182]
    """
    last = as_of_ms - days * DAY - delay_ms
    if last - start_ms < 2 * DAY:
        raise BadQuestion(
            f"a window of {days} days before {stamp(as_of_ms)} begins before the log does"
            f" ({stamp(start_ms)}): take a later --as-of or a shorter --horizon"
        )
    first = start_ms + (last - start_ms) // 2
    step = max((last - first) // (CUTOFFS - 1), DAY) // DAY * DAY
    return np.arange(last, first - 1, -step, dtype=np.int64)[::-1]


def net_horizons(asked: Sequence[int]) -> tuple[int, ...]:
    """Horizons that a net learns: those asked for, and the short ones that it is served with.

    >>> net_horizons([91])
    (7, 30, 91)
    """
    return tuple(sorted({*asked, *(d for d in SHORT_DAYS if d < max(asked))}))


def stamp(time_ms: int) -> str:
    """For people: a date where it is one.

    >>> stamp(0), stamp(3_600_000)
    ('1970-01-01', '1970-01-01T01:00:00Z')
    """
    return times.text(time_ms).removesuffix("T00:00:00Z")
