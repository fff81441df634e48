"""Protocol T: how good are values, judged as they would have been used.

At a cut-off T a model knows what had arrived before T, and nothing else: its labels come from
earlier rolling cut-offs whose windows end by T. It then scores every user seen before T, and its
value is held against what the user went on to spend in [T, T + horizon). A model that trains is
exported and loaded again, and scores from the folded states: what is judged is what would serve.

One window of 91 days is too noisy to gate on (nGini +- .05): give several cut-offs, and read the
interval of a comparison, which draws users in pairs (scoring.bootstrap).

Shapes: N users scored at a cut-off, H horizons. Times are integer milliseconds, UTC.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from featurestore.columns import EventBatch
from featurestore.settings import FeatureSettings
from scoring.baselines import BASELINES, Forecast, orders
from scoring.bootstrap import paired_bootstrap
from scoring.errors import ScoringError, TooLittleData
from scoring.examples import ExampleBuilder, Examples
from scoring.generation import Generation
from scoring.history import DAY, History, NetBy, Window, before
from scoring.interface import Prediction
from scoring.metrics import METRICS, Values, auc, brier, cover80
from scoring.settings import TrainingSettings
from scoring.trainable import TRAINED

Population = Literal["all", "buyers", "prospects"]
Log = Sequence[tuple[int, EventBatch]]
Ints = npt.NDArray[np.int64]

SERVED = "served"
DEFAULT = (SERVED, *BASELINES)
COMPARED = ("ngini", "top20", "mae")
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


@dataclass(frozen=True, slots=True)
class Scored:
    """One model at one cut-off for one horizon; rows are the users of the population."""

    as_of_ms: int
    days: int
    model: str
    seed: int | None
    user: Ints  # (N,)
    actual: Values
    active: npt.NDArray[np.bool_]
    forecast: Forecast
    p10: Values | None
    p90: Values | None
    n_train: int
    seconds: float

    def metrics(self) -> dict[str, float | None]:
        """By name; None where not defined."""
        said = self.forecast
        found = {name: metric(self.actual, said.expected) for name, metric in METRICS.items()}
        ranking = said.p_active if said.p_active is not None else said.expected
        out: dict[str, float | None] = dict(found)
        out["auc"] = auc(self.active, ranking)
        out["brier"] = None if said.p_active is None else brier(self.active, said.p_active)
        out["cover80"] = None
        if self.p10 is not None and self.p90 is not None:
            out["cover80"] = cover80(self.actual, self.p10, self.p90)
        return {name: _number(value) for name, value in out.items()}


@dataclass(slots=True)
class Report:
    """Answers, and how they compare; `as_json` is the shape of `evaluate --json`."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {"runs": self.runs, "comparisons": self.comparisons, "notes": self.notes}


Progress = Callable[[str], None]


def model_names() -> dict[str, str]:
    """What `--models list` prints: name -> what it is."""
    trained = {name: kind.about for name, kind in TRAINED.items()}
    fixed = {name: (model.__doc__ or "").splitlines()[0] for name, model in BASELINES.items()}
    return {**trained, **fixed}


def evaluate(
    log: Log,
    question: Question,
    features: FeatureSettings,
    sources: Sequence[str],
    progress: Progress = lambda _: None,
) -> Report:
    """Answer a question about a log: (partition, batch) pairs, each partition in log order."""
    history = History.of(log)
    check_question(history, question)
    report = Report()
    scored: list[Scored] = []
    for as_of in question.as_of_ms:
        judge = _Judge(log, history, question, features, sources, as_of, progress)
        for one in judge.scores():
            scored.append(one)
            report.runs.append(_run(one, question))
        report.notes += [note for note in judge.notes if note not in report.notes]
    progress("comparing")
    report.comparisons = comparisons(scored, question)
    return report


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
                    f"{days} days from {_stamp(as_of)} reach past the log's end"
                    f" ({_stamp(history.end_ms)}): take an earlier --as-of or a shorter --horizon"
                )
        if not history.known(as_of).any():
            raise BadQuestion(
                f"nothing had arrived before {_stamp(as_of)}; the log begins at"
                f" {_stamp(history.start_ms)}: take a later --as-of"
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
            f"a window of {days} days before {_stamp(as_of_ms)} begins before the log does"
            f" ({_stamp(start_ms)}): take a later --as-of or a shorter --horizon"
        )
    first = start_ms + (last - start_ms) // 2
    step = max((last - first) // (CUTOFFS - 1), DAY) // DAY * DAY
    return np.arange(last, first - 1, -step, dtype=np.int64)[::-1]


class _Judge:
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
            raise BadQuestion(f"no {self._question.population} before {_stamp(self._as_of)}")
        return np.flatnonzero(wanted)

    def scores(self) -> Iterator[Scored]:
        """Every model asked for, at this cut-off."""
        for name in self._question.models:
            self._progress(f"{_stamp(self._as_of)} {name}")
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
                forecast, p10, p90 = self._forecast(rows, made, horizons.index(days))
                yield self._scored(name, seed, days, window, forecast, n_train, trained, p10, p90)

    def _forecast(
        self, rows: Examples, made: Prediction, horizon: int
    ) -> tuple[Forecast, Values, Values]:
        """Spread over all users; whoever the fold does not know is worth 0, and there are none."""
        at = np.array([self._history.users[rows.users[u]] for u in rows.user.tolist()], np.int64)

        def spread(values: npt.NDArray[np.float32]) -> Values:
            out = np.zeros(len(self._history.users))
            out[at] = values
            return out

        return (
            Forecast(spread(made.expected[:, 0, horizon]), spread(made.p_active[:, 0, horizon])),
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
        p10: Values | None = None,
        p90: Values | None = None,
    ) -> Scored:
        rows = self._rows
        p_active = forecast.p_active
        cut = Forecast(forecast.expected[rows], None if p_active is None else p_active[rows])
        return Scored(
            self._as_of,
            days,
            name,
            seed,
            rows,
            window.value[rows],
            window.active[rows],
            cut,
            None if p10 is None else p10[rows],
            None if p90 is None else p90[rows],
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
                f"no training cut-off has a window that ends by {_stamp(self._as_of)}:"
                " take earlier --train-cutoffs"
            )
        made = self._build(horizons, cutoffs, delay)
        if not made.mask.any(0).all():
            raise TooLittleData(
                f"no window of {max(horizons)} days ends by {_stamp(self._as_of)}:"
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


def net_horizons(asked: Sequence[int]) -> tuple[int, ...]:
    """Horizons that a net learns: those asked for, and the short ones that it is served with.

    >>> net_horizons([91])
    (7, 30, 91)
    """
    return tuple(sorted({*asked, *(d for d in SHORT_DAYS if d < max(asked))}))


def score(generation: Generation, rows: Examples, chunk: int = 4096) -> Prediction:
    """Predictions for example rows by a loaded generation: carry by its steps, then its heads."""
    model = generation.model
    parts: list[Prediction] = []
    for start in range(0, max(len(rows), 1), chunk):
        part = slice(start, start + chunk)
        length = rows.position[part]
        user = np.repeat(np.arange(len(length), dtype=np.int32), length)
        step = np.arange(len(user)) - np.repeat(np.cumsum(length) - length, length)
        tokens = rows.tokens[np.repeat(rows.starts[rows.sequence[part]], length) + step]
        carries = np.zeros((len(length), model.carry_size), np.float32)
        if model.carry_size:
            carries = model.advance(carries, user, tokens)
        parts.append(model.predict(carries, rows.features[part][:, None]))
    names = Prediction.__slots__
    return Prediction(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def comparisons(scored: Sequence[Scored], question: Question) -> list[dict[str, Any]]:
    """The first model named against each other, at each cut-off and over all of them."""
    out: list[dict[str, Any]] = []
    first, *others = question.models
    for other in others:
        for days in question.horizons_days:
            each = [(_utc(t), {t}) for t in question.as_of_ms]
            pooled = [("pooled", set(question.as_of_ms))] if len(question.as_of_ms) > 1 else []
            for name, times in [*each, *pooled]:
                a = [s for s in scored if _is(s, first, days, times)]
                b = [s for s in scored if _is(s, other, days, times)]
                out += [
                    {"a": first, "b": other, "as_of": name, "horizon_days": days, **found}
                    for found in _compare(a, b, question.draws)
                ]
    return out


def _compare(
    a: Sequence[Scored], b: Sequence[Scored], draws: int
) -> Iterator[dict[str, float | str | None]]:
    """Every seed of a against every seed of b, as windows of the same users."""
    pairs = [(x, y) for x in a for y in b if x.as_of_ms == y.as_of_ms]
    if not pairs:
        return
    actual = np.concatenate([x.actual for x, _ in pairs])
    said_a = np.concatenate([x.forecast.expected for x, _ in pairs])
    said_b = np.concatenate([y.forecast.expected for _, y in pairs])
    users = np.concatenate([x.user for x, _ in pairs])
    windows = np.repeat(np.arange(len(pairs)), [len(x.user) for x, _ in pairs])
    for metric in COMPARED:
        found = paired_bootstrap(metric, actual, said_a, said_b, users, windows, draws)
        yield {
            "metric": metric,
            "delta": _number(found.delta),
            "low": _number(found.low),
            "high": _number(found.high),
        }


def _is(one: Scored, model: str, days: int, times: set[int]) -> bool:
    return one.model == model and one.days == days and one.as_of_ms in times


def _run(one: Scored, question: Question) -> dict[str, Any]:
    return {
        "as_of": _utc(one.as_of_ms),
        "horizon_days": one.days,
        "model": one.model,
        "seed": one.seed,
        "population": question.population,
        "users": len(one.user),
        "n_train": one.n_train,
        "seconds": round(one.seconds, 3),
        "metrics": one.metrics(),
    }


def _number(value: float | None) -> float | None:
    """JSON has no NaN: what is not defined is null."""
    return value if value is not None and np.isfinite(value) else None


def _utc(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat().replace("+00:00", "Z")


def _stamp(time_ms: int) -> str:
    """For people: a date where it is one."""
    return _utc(time_ms).removesuffix("T00:00:00Z")
