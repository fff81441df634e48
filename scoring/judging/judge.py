"""One cut-off of protocol T: who is scored, what came true, and what each model says.

A model that trains learns from earlier cut-offs whose labels were whole by this one; it is
exported and loaded again, and scores from the folded states, so that what is judged is what would
serve.

Shapes: U users of the log, N of them scored, H horizons. Times are integer milliseconds, UTC.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.wording import counted
from scoring import cost
from scoring.judging.baselines.fitted import Baseline
from scoring.judging.contenders import DAILY, FITTED
from scoring.judging.cutoffs import BadQuestion, stamp
from scoring.judging.groups import groups, people, populations
from scoring.judging.history import DAY
from scoring.judging.past import Past
from scoring.judging.point_in_time import PointInTime
from scoring.judging.question import Case, net_horizons
from scoring.judging.scored import Outcome, Scored, measures
from scoring.judging.targeting import Clicks, targeting
from scoring.judging.thresholds import RATES, Threshold, rates
from scoring.judging.validation import Validation
from scoring.settings import TrainingSettings
from scoring.training.forecasts import Forecast, score
from scoring.training.rows import LEAST_USERS
from scoring.training.splits import held_out
from scoring.training.trainable import SERVED, TRAINED, Ask, Made

Bools = npt.NDArray[np.bool_]
Progress = Callable[[str], None]  # what is being done


class Judge:
    """Everything at one cut-off."""

    def __init__(self, case: Case, as_of_ms: int, progress: Progress) -> None:
        question = case.question
        self._case, self._history, self._question = case, case.history, question
        self._as_of, self._progress = as_of_ms, progress
        self.notes: list[str] = []
        self._past = Past.of(case.history, as_of_ms, question.net_by, question.cutoffs_ms)
        self._groups = list(groups(self._past, question.population))
        self._rows = self._population()
        self._came: dict[int, Outcome] = {}
        self._clicks: dict[int, Clicks] = {}
        self._validation: dict[int, Validation | str] = {}
        for days in question.horizons_days:
            self._look_ahead(days)
        self._folded: dict[tuple[int, ...], PointInTime] = {}  # by the moments asked about

    def _population(self) -> npt.NDArray[np.int64]:
        """Users to score: seen before the cut-off, with or without an order by then."""
        named = populations(self._past)
        asked = self._question.population
        count = int(named[asked].sum())
        if count < LEAST_USERS:
            others = ", ".join(
                people(int(n.sum()), name) for name, n in named.items() if name != asked
            )
            raise BadQuestion(
                f"{people(count, asked)} before {stamp(self._as_of)}, and a ranking wants"
                f" {LEAST_USERS} or more (there are {others}): take a later --as-of or another"
                " --population"
            )
        return np.flatnonzero(named[asked])

    def _look_ahead(self, days: int) -> None:
        """What came true, and the window before on which to choose."""
        asked = self._question
        judged = asked.judged_days(days)
        end = self._as_of + judged * DAY
        window = self._history.window(self._as_of, end, asked.net_by)
        self._came[days] = Outcome(window.value, window.active, window.net)
        if not window.value[self._rows].any():
            raise BadQuestion(
                f"none of {people(len(self._rows), asked.population)} spent anything in the"
                f" {counted(judged, 'day')} from {stamp(self._as_of)}: there is nothing to rank;"
                " take another --as-of, a longer --horizon or another --population"
            )
        self._clicks[days] = Clicks.of(self._history, self._as_of, end)
        self._validation[days] = Validation.before(self._past, judged, asked.population)

    def scores(self) -> Iterator[Scored]:
        """Every model asked for, at this cut-off."""
        for name in self._question.models:
            self._progress(f"{stamp(self._as_of)} {name}")
            if name in FITTED:
                yield from self._baseline(name)
            else:
                yield from self._trained(name)

    def _baseline(self, name: str) -> Iterator[Scored]:
        fitted, horizons = FITTED[name], self._question.horizons_days
        began = time.perf_counter()
        forecasts = fitted(self._past, horizons)
        seconds = time.perf_counter() - began
        for days, forecast in zip(horizons, forecasts, strict=True):
            threshold = self._threshold(days, self._refitted(fitted, days))
            yield self._scored(name, None, days, forecast, 0, seconds, threshold)

    @staticmethod
    def _refitted(fitted: Baseline, days: int) -> Callable[[Validation], Forecast]:
        """A baseline as it would have been at the validation cut-off."""
        return lambda validation: fitted(validation.past, [days])[0]

    def _trained(self, name: str) -> Iterator[Scored]:
        """A model at its cut-off, which for a daily one is the last midnight."""
        model, daily = DAILY.get(name, name), name in DAILY
        kind, training = TRAINED[model], self._question.training
        rows = self._point_in_time(daily)
        examples = rows.training if kind.trains else None
        horizons = net_horizons(self._question.horizons_days)
        for seed in range(self._question.seeds if kind.seeded else 1):
            began = time.perf_counter()
            how = training.model_copy(update={"seed": training.seed + seed})
            ask = Ask(examples, horizons, how, progress=self._epochs(name))
            trained = kind.make(ask)
            generation = trained.whole
            seconds = time.perf_counter() - began
            n_train = len(examples) if examples is not None else 0
            users = rows.users(_midnight(self._as_of, daily))
            made = score(generation, users)
            spent = cost.measure(generation).as_json()
            for days in self._question.horizons_days:
                threshold = self._chosen(model, how, trained, rows, days, daily)
                forecast = rows.spread(users, made, days)
                yield self._scored(name, seed, days, forecast, n_train, seconds, threshold, spent)

    def _chosen(
        self,
        model: str,
        how: TrainingSettings,
        trained: Made,
        rows: PointInTime,
        days: int,
        daily: bool,
    ) -> Threshold:
        """The threshold of a trained model, on users whom it has not learned from where it can."""
        validation = self._validation[days]
        if isinstance(validation, str):
            return Threshold(None, validation)
        users = rows.users(_midnight(validation.past.as_of_ms, daily))
        held: Bools | None = None
        judged = trained.whole
        family = how.family if model == SERVED else model
        if TRAINED[family].holds_out:
            judged = trained.apart()
            held = np.zeros(len(self._history.users), bool)
            names = (users.users[u] for u in users.user[held_out(users, how)].tolist())
            held[[self._history.users[name] for name in names]] = True
        return self._threshold(days, lambda _: rows.spread(users, score(judged, users), days), held)

    def _threshold(
        self,
        days: int,
        forecast: Callable[[Validation], Forecast],
        held: Bools | None = None,
    ) -> Threshold:
        validation = self._validation[days]
        if isinstance(validation, str):
            return Threshold(None, validation)
        return validation.threshold(self._question.task, lambda: forecast(validation), held)

    def _point_in_time(self, daily: bool) -> PointInTime:
        as_of = _midnight(self._as_of, daily)
        before = [v.past.as_of_ms for v in self._validation.values() if not isinstance(v, str)]
        moments = tuple(_midnight(moment, daily) for moment in (self._as_of, *before))
        if moments not in self._folded:
            self._folded[moments] = PointInTime(self._case, as_of, moments)
        return self._folded[moments]

    def _epochs(self, label: str) -> Callable[[str, int, int], None]:
        def told(stage: str, done: int, total: int) -> None:
            self._progress(f"{stamp(self._as_of)} {label}:  {stage} {done}/{total}")

        return told

    def _scored(
        self,
        name: str,
        seed: int | None,
        days: int,
        forecast: Forecast,
        n_train: int,
        seconds: float,
        threshold: Threshold,
        spent: dict[str, Any] | None = None,
    ) -> Scored:
        rows, task, came = self._rows, self._question.task, self._came[days]
        said, here = forecast.rows(rows), came.rows(rows)
        found = {
            metric: None if np.isnan(value) else value
            for metric, value in rates(
                task.truth(here.value, here.active), task.score(said), threshold.at
            ).items()
        }
        assert set(found) == set(RATES)
        share = self._question.target_share
        facts = {
            "cost": spent,
            "classification": threshold.as_json(task, found),
            "targeting": targeting(said, here.active, share, self._clicks[days], rows),
            "groups": [
                {
                    "by": group.by,
                    "group": group.name,
                    "users": int(group.at.sum()),
                    "active": int(came.active[group.at].sum()),
                    "metrics": measures(
                        forecast.rows(np.flatnonzero(group.at)), came.rows(group.at)
                    ),
                }
                for group in self._groups
            ],
        }
        return Scored(
            self._as_of, days, name, seed, rows, here, said, n_train, seconds, found, facts
        )


def _midnight(moment_ms: int, daily: bool) -> int:
    return moment_ms // DAY * DAY if daily else moment_ms
