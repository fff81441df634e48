"""Does a reader's value say what the model would? The law of silence, measured on a real log.

A document says at knots of future silence what a user will be worth while he does nothing, and a
reader draws straight lines between them. At an instant c in a user's silence the reader's value
comes from the document that he holds; the model asked again encodes the same state at c. The law:
the two differ by at most 3 % of the value at the last event, at the 95th percentile of silent
user-days, for every horizon.

Two readers are measured. `live` holds what a worker has published by c: it publishes a silent
user again whenever his headline has moved by `republish_share`. `alone` holds the document of the
last event however long ago that was, as whoever asks today for a value of next month does.

Instants are evenly spread over the log and every user is looked at, so rows are silent user-days
as they come: long silences count for their length.

Shapes: N silent user-days, K knots, H horizons. Times are integer milliseconds, UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from featurestore.columns import NO_TIME
from featurestore.fold_settings import FoldSettings
from featurestore.settings import FeatureSettings
from featurestore.state import States
from scoring.generation import Generation
from scoring.interface import Floats
from scoring.judging.history import DAY, History, Log
from scoring.judging.known import known_at
from scoring.scorer import Scorer
from scoring.settings import ModelSettings

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
Reader = Literal["live", "alone"]

MOST = 0.03  # of the start
AT = 0.95  # of silent user-days


@dataclass(frozen=True, slots=True)
class Silences:
    """Silent user-days: how long the user has been silent, and what was said of him."""

    days: Doubles  # (N,) since the last event
    start: Doubles  # (N, H) expected value at the last event
    alone: Doubles  # (N, H) read from the last event's document
    live: Doubles  # (N, H) read from the document that stands by then
    asked: Doubles  # (N, H) by the model, from the state
    published: Ints  # (N,) documents of this silence, the event's own not counted

    def off(self, reader: Reader) -> Doubles:
        """(N, H) difference as a share of the start."""
        read = self.live if reader == "live" else self.alone
        return np.asarray(np.abs(read - self.asked) / np.maximum(self.start, 1e-9))

    def p95(self, reader: Reader) -> Doubles:
        """(H,) the figure that the law bounds."""
        return np.asarray(np.quantile(self.off(reader), AT, axis=0))


def silences(
    log: Log,
    generation: Generation,
    model: ModelSettings,
    features: FeatureSettings,
    sources: Sequence[str],
    *,
    instants: int = 24,
    most: int = 20_000,
    seed: int = 0,
) -> Silences:
    """Silent user-days of `log` at evenly spread instants; `most` of them, drawn at random."""
    history = History.of(log, FoldSettings.of(features, sources))
    names = list(history.users)
    first = np.full(len(names), np.iinfo(np.int64).max)
    np.minimum.at(first, history.user, history.log_ms)
    cuts = np.linspace(history.start_ms, history.end_ms, instants + 1).astype(np.int64)[1:]
    user, window = np.nonzero(first[:, None] < cuts)
    if len(user) > most:
        kept = np.random.default_rng(seed).choice(len(user), most, replace=False)
        user, window = user[kept], window[kept]
    scorer = Scorer(generation, model, features)
    asked = [names[u] for u in user.tolist()]
    parts: list[Silences] = []
    for known in known_at(log, asked, cuts[window], scorer, features, sources):
        when = cuts[window[known.question]]
        last = known.states.head["last_ms"]
        silent = np.flatnonzero(known.states.known() & (last < when))
        if len(silent):
            states, head = known.states.select(silent), known.head[silent]
            parts.append(_read(scorer, states, head, when[silent]))
    if not parts:
        none = np.empty((0, len(model.horizons_days)))
        return Silences(np.empty(0), none, none, none, none, np.empty(0, np.int64))
    columns = Silences.__slots__
    return Silences(*(np.concatenate([getattr(p, name) for p in parts]) for name in columns))


def _read(scorer: Scorer, states: States, head: Floats, when: Ints) -> Silences:
    """Both readers and the model, of users who are silent at `when` (U,)."""
    headline = [f"d{days}" for days in scorer.settings.horizons_days].index(
        scorer.settings.headline
    )
    last_ms = states.head["last_ms"].copy()
    said = scorer.rescore(states, head, last_ms)
    held = scorer.last(1, last_ms, said)
    alone = scorer.previous_at(held, when)
    due = scorer.due_ms(said, last_ms, headline)
    published = np.zeros(len(when), np.int64)
    while len(again := np.flatnonzero((due != NO_TIME) & (due <= when))):
        as_of = due[again]
        anew = scorer.rescore(states.select(again), head[again], as_of)
        held[again] = scorer.last(1, as_of, anew)
        due[again] = scorer.due_ms(anew, as_of, headline)
        published[again] += 1
    return Silences(
        (when - last_ms) / DAY,
        said.expected[:, 0].astype(np.float64),
        alone.astype(np.float64),
        scorer.previous_at(held, when).astype(np.float64),
        scorer.now(states, head, when).expected[:, 0].astype(np.float64),
        published,
    )
