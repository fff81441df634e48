"""One cut-off of protocol T: who is scored, what came true, and what each model says.

A model that trains learns from earlier cut-offs whose labels were whole by this one; it is
exported and loaded again, and scores from the folded states, so that what is judged is what would
serve.

Shapes: U users of the log, N of them scored, H horizons. Times are integer milliseconds, UTC.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from featurestore.columns import EventBatch
from featurestore.settings import FeatureSettings
from scoring.baselines import BASELINES, orders
from scoring.errors import TooLittleData
from scoring.examples import ExampleBuilder, Examples
from scoring.forecasts import Forecast, score
from scoring.history import DAY, History, Window, before
from scoring.interface import Prediction
from scoring.metrics import Values
from scoring.question import BadQuestion, Ints, Question, choose_cutoffs, net_horizons, stamp
from scoring.scored import Scored
from scoring.trainable import TRAINED

Log = Sequence[tuple[int, EventBatch]]  # (partition, batch), each partition in log order
Progress = Callable[[str], None]


class Judge:
    """Everything at one cut-off."""

    def __init__(
        self,
        log: Log,
        history: History,
        question: Question,
        features: FeatureSettings,
        sources: Sequence[str],
        as_of_ms: int,
        progress: Progress,
    ) -> None:
        self._log, self._history, self._question = log, history, question
        self._features, self._sources = features, sources
        self._as_of, self._progress = as_of_ms, progress
        self.notes: list[str] = []
        self._seen = np.zeros(len(history.users), bool)
        self._seen[history.user[history.known(as_of_ms)]] = True
        self._rows = self._population()
        self._windows = {
            days: history.window(as_of_ms, as_of_ms + days * DAY, question.net_by)
            for days in question.horizons_days
        }

    def _population(self) -> Ints:
        """Users to score: seen before the cut-off, with or without an order by then."""
        past = self._history.window(self._history.start_ms, self._as_of, self._question.net_by)
        wanted = {
            "all": self._seen,
            "buyers": self._seen & past.active,
            "prospects": self._seen & ~past.active,
        }[self._question.population]
        if not wanted.any():
            raise BadQuestion(f"no {self._question.population} before {stamp(self._as_of)}")
        return np.flatnonzero(wanted)

    def scores(self) -> Iterator[Scored]:
        """Every model asked for, at this cut-off."""
        for name in self._question.models:
            self._progress(f"{stamp(self._as_of)} {name}")
            if name in BASELINES:
                yield from self._baseline(name)
            else:
                yield from self._trained(name)

    def _baseline(self, name: str) -> Iterator[Scored]:
        history = self._history
        known = history.known(self._as_of)
        made = orders(
            history.user[known],
            history.time_ms[known],
            history.value[known],
            len(history.users),
            self._as_of,
            self._question.net_by == "user-day",
        )
        for days, window in self._windows.items():
            began = time.perf_counter()
            forecast = BASELINES[name](made, float(days))
            seconds = time.perf_counter() - began
            yield self._scored(name, None, days, window, forecast, 0, seconds)

    def _trained(self, name: str) -> Iterator[Scored]:
        kind = TRAINED[name]
        horizons = net_horizons(self._question.horizons_days)
        rows = self._test_rows(horizons)
        examples = self._examples(horizons) if kind.trains else None
        for seed in range(self._question.seeds if kind.seeded else 1):
            began = time.perf_counter()
            training = self._question.training
            how = training.model_copy(update={"seed": training.seed + seed})
            generation = kind.make(examples, horizons, how)
            trained = time.perf_counter() - began
            made = score(generation, rows)
            n_train = len(examples) if examples is not None else 0
            for days, window in self._windows.items():
                forecast = self._forecast(rows, made, horizons.index(days))
                yield self._scored(name, seed, days, window, forecast, n_train, trained)

    def _forecast(self, rows: Examples, made: Prediction, horizon: int) -> Forecast:
        """Spread over all users; whoever the fold does not know is worth 0, and there are none."""
        at = np.array([self._history.users[rows.users[u]] for u in rows.user.tolist()], np.int64)

        def spread(values: npt.NDArray[np.float32]) -> Values:
            out = np.zeros(len(self._history.users))
            out[at] = values
            return out

        return Forecast(
            spread(made.expected[:, 0, horizon]),
            spread(made.p_active[:, 0, horizon]),
            spread(made.if_active[:, horizon, 0]),
            spread(made.if_active[:, horizon, 2]),
        )

    def _scored(
        self,
        name: str,
        seed: int | None,
        days: int,
        window: Window,
        forecast: Forecast,
        n_train: int,
        seconds: float,
    ) -> Scored:
        rows = self._rows
        return Scored(
            self._as_of,
            days,
            name,
            seed,
            rows,
            window.value[rows],
            window.active[rows],
            forecast.rows(rows),
            n_train,
            seconds,
        )

    def _test_rows(self, horizons: tuple[int, ...]) -> Examples:
        return self._build(horizons, np.array([self._as_of], np.int64), 0)

    def _examples(self, horizons: tuple[int, ...]) -> Examples:
        """Training rows, marked mature as they were at the cut-off."""
        delay = self._history.delay_ms(self._as_of)
        asked = self._question.cutoffs_ms
        start = self._history.start_ms
        if asked is None:
            longest = max(horizons)
            cutoffs = choose_cutoffs(start, self._as_of, longest, delay)
        else:
            cutoffs = np.array(asked, np.int64)
        shortest_ms = min(horizons) * DAY
        cutoffs = cutoffs[cutoffs + shortest_ms + delay <= self._as_of]
        if not len(cutoffs):
            raise BadQuestion(
                f"no training cut-off has a window that ends by {stamp(self._as_of)}:"
                " take earlier --train-cutoffs"
            )
        made = self._build(horizons, cutoffs, delay)
        if not made.mask.any(0).all():
            raise TooLittleData(
                f"no window of {max(horizons)} days ends by {stamp(self._as_of)}:"
                " take earlier --train-cutoffs or a shorter --horizon"
            )
        if delay == 0 and not self.notes:
            self.notes.append("the log holds no arrival times: events count as arrived at once")
        return made

    def _build(self, horizons: tuple[int, ...], cutoffs_ms: Ints, delay_ms: int) -> Examples:
        builder = ExampleBuilder(
            self._features,
            self._sources,
            [days * DAY // 1000 for days in horizons],
            cutoffs_ms,
            log_start_ms=self._history.start_ms,
            lateness_ms=delay_ms,
        )
        for partition, batch in before(self._log, self._as_of):
            builder.add(partition, batch)
        # the log is known up to the cut-off, though its last event may lie before
        return builder.finish(self._as_of)
