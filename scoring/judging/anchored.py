"""Value since install, judged: users at a set age, against what they were worth by a later one.

A row is a user a days after his first event; the model says what he will have been worth h days
after it (scoring.lifetime: spent so far, and what is expected in the days left), and is held
against what he then was. Users who came so late that the model was made before row's moment are
judged, and only those whose h days lie within the log. What they have spent so far is the
baseline, in ranking: the rest is what the model adds.

Shapes: N users, H horizons. Times are integer milliseconds, UTC; ages in days.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore import times
from featurestore.settings import FeatureSettings
from featurestore.state import history as past_of
from scoring.generation import Generation
from scoring.judging import metrics
from scoring.judging.bootstrap import paired_bootstrap
from scoring.judging.history import DAY, MICRO, Log
from scoring.judging.known import erased, known_at
from scoring.judging.learned import learned
from scoring.judging.question import Case, Question, net_horizons, stamp
from scoring.judging.scored import number
from scoring.judging.spans import Spans
from scoring.lifetime import lifetimes
from scoring.scorer import Scorer
from scoring.settings import ModelSettings

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
Progress = Callable[[str], None]

SPENT = "spent"  # the baseline
LEAST = 20  # users below which nothing is said
_SHOWN = ("ngini", "spearman", "top20", "mae", "bias")


def anchored(
    log: Log,
    question: Question,
    ages_days: Sequence[float],
    features: FeatureSettings,
    sources: Sequence[str],
    progress: Progress = lambda _: None,
    draws: int = 400,
) -> list[dict[str, Any]]:
    """Rows of `evaluate --anchor first_event`: each age, each horizon beyond it, each model."""
    case = Case.of(log, question, features, sources)
    history = case.history
    gone = erased(log)
    names = list(history.users)
    usable = np.array([name not in gone for name in names], bool)
    unborn = np.iinfo(np.int64).max
    first, arrived = np.full(len(names), unborn), np.full(len(names), unborn)
    np.minimum.at(first, history.user, history.time_ms)
    np.minimum.at(arrived, history.user, np.maximum(history.log_ms, history.time_ms))
    spans = Spans(history)
    out: list[dict[str, Any]] = []
    for as_of in question.as_of_ms:
        progress(f"{stamp(as_of)} training")
        for name, generation in learned(case, as_of):
            for age in ages_days:
                progress(f"{stamp(as_of)} {name}, aged {age:g} days")
                moment = arrived + 1 + round(age * DAY)
                shortest = min(question.horizons_days) * DAY
                user = np.flatnonzero(
                    usable & (moment >= as_of) & (first + shortest <= history.end_ms)
                )
                spent, said = _said(case, names, user, moment[user], generation)
                for days in question.horizons_days:
                    end = first[user] + days * DAY
                    at = np.flatnonzero((end <= history.end_ms) & (moment[user] < end))
                    column = net_horizons(question.horizons_days).index(days)
                    actual = spans.value(user[at], first[user][at], end[at])
                    head = {
                        "as_of": times.text(as_of),
                        "anchor": "first_event",
                        "age_days": age,
                        "horizon_days": days,
                    }
                    out += _judged(head, name, actual, said[at, column], spent[at], draws)
    return out


def _judged(
    head: dict[str, Any], name: str, actual: Doubles, said: Doubles, spent: Doubles, draws: int
) -> Iterator[dict[str, Any]]:
    """A row of the model and one of what was spent so far; none for a handful of users."""
    if len(actual) < LEAST or not actual.any():
        return
    found = paired_bootstrap("ngini", actual, said, spent, np.arange(len(actual)), draws=draws)
    for model, values in ((name, said), (SPENT, spent)):
        yield {
            **head,
            "model": model,
            "users": len(actual),
            "metrics": {m: number(metrics.METRICS[m](actual, values)) for m in _SHOWN},
            "ngini_beyond_spent": None
            if model == SPENT
            else {key: number(value) for key, value in found._asdict().items()},
        }


def _said(
    case: Case, names: Sequence[str], user: Ints, moment_ms: Ints, generation: Generation
) -> tuple[Doubles, Doubles]:
    """(N,) spent so far and (N, H) lifetime, as a document of the moment would say."""
    horizons = net_horizons(case.question.horizons_days)
    model = ModelSettings(horizons_days=horizons, headline=f"d{max(horizons)}")
    scorer = Scorer(generation, model, case.features)
    spent = np.zeros(len(user))
    said = np.full((len(user), len(horizons)), np.nan)
    asked = [names[u] for u in user.tolist()]
    for known in known_at(case.log, asked, moment_ms, scorer, case.features, case.sources):
        past = past_of(known.states)
        when = np.maximum(past["last_ms"], moment_ms[known.question])
        expected = scorer.now(known.states, known.head, when).expected[:, 0]
        so_far = past["spent_micro"] / MICRO
        age = (when - past["first_ms"]) / DAY
        spent[known.question] = np.maximum(so_far, 0)
        said[known.question] = lifetimes(so_far, age, expected, horizons)
    return spent, said
