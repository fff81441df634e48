"""Tune: search the training settings of the served net, judged on cut-offs of the log itself.

The log is folded once, up to `until`; nothing that arrived at or after it is looked at. Where none
is given it is the end of the log at the first call, which the journal keeps: a live log grows.

The newest mature rolling cut-offs validate; the older ones train, with labels that were mature by
the first validation cut-off, so that each trial is judged forward in time on all users known, as it
would serve. The objective is the nGini of the exported, calibrated generation, mean over the
validation cut-offs. Trial 0 is the settings in force: what tuning brings is said against it, with
an interval.

A search is Optuna's TPE with one seed per trial number, so that a search that was stopped and gone
on with tries what an unbroken one tries. After a fifth of its epochs a trial is pruned when its
best held-out loss is worse than the median of earlier trials at the same share of theirs.

Trials are chosen on the rows that they are compared on, so the best one's gain is flattered; judge
it again by `livevalue evaluate` at a cut-off after `until`. Source: Optuna, arXiv:1907.10902.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore import times
from featurestore.columns import NO_TIME
from featurestore.fold_settings import FoldSettings
from featurestore.settings import FeatureSettings
from scoring.errors import ScoringError, TooLittleData
from scoring.judging import metrics
from scoring.judging.bootstrap import Difference, paired_bootstrap
from scoring.retraining.candidate import fold_log
from scoring.retraining.journal import Journal
from scoring.retraining.origins import trimmed
from scoring.retraining.scan import LogSummary, scan
from scoring.retraining.settings import RetrainSettings
from scoring.settings import ModelSettings, TrainingSettings
from scoring.training.examples import Examples, Log, split
from scoring.training.recipes import Progress, expected
from scoring.training.splits import newest

try:
    import optuna
    from optuna.trial import TrialState

    from scoring.training import loop as trainer
except ImportError as error:
    raise ScoringError(
        f"tune needs {error.name}: install the package with its extra `train`"
    ) from error

STEPS = 20  # shares of a trial's epochs at which it is compared with earlier ones
WARM_UP, STARTS = 4, 4  # steps, and trials, before anything is pruned
WINDOWS = 3  # newest mature cut-offs that validate, at most
DAY_S = 86_400

Values = npt.NDArray[np.float64]
Choice = int | float | str | None


@dataclass(frozen=True, slots=True)
class Dimension:
    """One setting that is searched: some choices, or a range, even in the logarithm if `log`."""

    name: str
    choices: tuple[Choice, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    def holding(self, value: Choice) -> Dimension:
        """Widened so that the setting in force can be tried."""
        if self.choices:
            return self if value in self.choices else replace(self, choices=(*self.choices, value))
        assert isinstance(value, int | float)
        low, high = min(self.low, value), max(self.high, value)
        return replace(self, low=low, high=high, log=self.log and low > 0)

    def suggest(self, trial: optuna.Trial) -> Choice:
        """A value for one trial."""
        if self.choices:
            chosen: Choice = trial.suggest_categorical(self.name, self.choices)
            return chosen
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


SPACE = (
    Dimension("width", choices=(16, 32, 48, 64)),
    Dimension("epochs", choices=(None, 8, 16, 32, 64)),
    Dimension("users_per_batch", choices=(64, 128, 256, 512)),
    Dimension("rate", low=2e-4, high=1e-2, log=True),
    Dimension("decay", low=1e-4, high=0.3, log=True),
    Dimension("dropout", low=0.0, high=0.5),
)


@dataclass(frozen=True, slots=True)
class View:
    """What a search looks at of a log that may grow: what it showed then, before `until_ms`."""

    asked_ms: int | None  # the end asked for
    until_ms: int  # no later than that, and just past what the log held
    summary: LogSummary  # so that cut-offs and the users drawn stay the same

    def as_json(self) -> dict[str, Any]:
        """Plain values, for the journal."""
        return asdict(self)


def kept_view(journal: Journal, until_ms: int | None) -> View | None:
    """Of the search in a journal, None where none was begun; ScoringError if of another end."""
    kept = journal.view
    if kept is None:
        return None
    view = View(kept["asked_ms"], kept["until_ms"], LogSummary(**kept["summary"]))
    if until_ms not in (None, view.asked_ms, view.until_ms):
        journal.refuse(f"up to {times.text(view.asked_ms or view.until_ms)}, not --until")
    return view


@dataclass(frozen=True, slots=True)
class Task:
    """What all trials share: rows to train on, rows to be judged by."""

    train: Examples
    judge: Examples  # all labels of `column` mature
    column: int  # of the horizon that is judged
    log: str  # hash of what the log shows within `view`
    view: View

    @property
    def horizon_days(self) -> int:
        """Days of the horizon judged."""
        return self.judge.horizons_s[self.column] // DAY_S


@dataclass(frozen=True, slots=True)
class Tried:
    """One finished trial."""

    number: int
    ngini: float | None  # None: pruned
    settings: TrainingSettings
    seconds: float


@dataclass(slots=True)
class Tuned:
    """The end of a search; `as_json` is the shape of `tune --json`."""

    trials: list[Tried]
    default: Tried
    best: Tried
    horizon_days: int
    validation_ms: list[int]
    users: int
    until_ms: int
    gain: Difference | None = None  # in nGini; None where the settings in force have none
    settings: dict[str, Any] = field(default_factory=dict)  # of the best, where not as in force

    @property
    def better(self) -> bool:
        """Is the gain beyond what another sample of users would show?"""
        return self.gain is not None and self.gain.low > 0

    def toml(self) -> str:
        """What to paste into livevalue.toml."""
        return snippet(self.settings)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "trials": [_plain(one) for one in self.trials],
            "default": _plain(self.default),
            "best": _plain(self.best),
            "gain": {"metric": "ngini", **self.gain._asdict()} if self.gain else None,
            "better": self.better,
            "horizon_days": self.horizon_days,
            "validation_ms": self.validation_ms,
            "users": self.users,
            "until_ms": self.until_ms,
            "toml": self.toml(),
        }


def prepare(
    log: Callable[[], Log],
    model: ModelSettings,
    features: FeatureSettings,
    sources: Sequence[str],
    until_ms: int | None = None,
    kept: View | None = None,
    settings: RetrainSettings | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Task:
    """Fold `log`, called twice as by retrain, up to `until_ms`; TooLittleData if it is short.

    `kept`: the view of a search that is gone on with; the log is then called once.
    """
    settings = settings or RetrainSettings()
    progress("scan", 0, None)
    view = kept or _view(log(), until_ms)
    if not view.summary.events:
        raise TooLittleData("no event of a known user before the end asked for: check --until")
    horizons_s = tuple(days * DAY_S for days in model.horizons_days)
    before = _until(log(), view.until_ms)
    examples = fold_log(before, view.summary, features, sources, horizons_s, settings, progress)
    if not examples.between.any():
        raise TooLittleData("the log holds no positive value event to predict: check what is value")
    lateness_ms = int(FoldSettings.of(features, sources).lateness_ms.max())
    headline = model.horizons_days.index(int(model.headline.removeprefix("d")))
    for column in range(headline, -1, -1):
        windows = _validation(examples, column, lateness_ms)
        if len(windows):
            return _task(examples, column, windows, lateness_ms, view)
    raise TooLittleData(
        "no mature validation cut-off has a mature training cut-off before it: the labels of"
        f" {horizons_s[0] // DAY_S} days are needed twice over, so give a longer log"
    )


def tune(
    task: Task,
    journal: Journal,
    *,
    trials: int,
    base: TrainingSettings | None = None,
    seed: int = 0,
    windows: int = 3,
    space: Sequence[Dimension] = SPACE,
    progress: Progress = lambda stage, done, total: None,
) -> Tuned:
    """Try settings until `trials` are finished (complete or pruned), those in the journal too.

    `base`: the settings in force, trial 0. An interrupted call leaves a journal to go on from.
    """
    base = base or TrainingSettings()
    search = _Search(task, base, windows, tuple(d.holding(getattr(base, d.name)) for d in space))
    made_with = {
        "log": task.log,
        "settings": _hash([base.model_dump(mode="json"), seed, windows]),
        "space": _hash([[d.name, d.choices, d.low, d.high, d.log] for d in search.space]),
    }
    journal.hold(made_with, task.view.as_json())
    study = journal.study
    while (done := len(_finished(study))) < trials:
        progress("trials", done, trials)
        search.one(study, seed)
    progress("trials", done, trials)
    return search.result(study)


@dataclass(slots=True)
class _Search:
    """Runs trials of one task."""

    task: Task
    base: TrainingSettings
    windows: int
    space: tuple[Dimension, ...]
    said: dict[int, Values] = field(default_factory=dict)  # trial -> (N,) values of judged rows

    def one(self, study: optuna.Study, seed: int) -> None:
        """The next trial: the settings in force until those are finished, then what TPE asks."""
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if not waiting and not any(_is_default(t) for t in _finished(study)):
            study.enqueue_trial(self._of(self.base), user_attrs={"default": True})
        # By number, so that a search gone on with draws what an unbroken one draws.
        tried = len(_finished(study))
        study.sampler = optuna.samplers.TPESampler(seed=seed * 1_000_003 + tried)
        study.pruner = optuna.pruners.MedianPruner(STARTS, WARM_UP)
        study.optimize(self._objective, n_trials=1)

    def _of(self, settings: TrainingSettings) -> dict[str, Choice]:
        return {d.name: getattr(settings, d.name) for d in self.space}

    def _objective(self, trial: optuna.Trial) -> float:
        chosen = self._settings({d.name: d.suggest(trial) for d in self.space})

        def watch(done: int, total: int, loss: float) -> None:
            if not np.isfinite(loss):
                raise optuna.TrialPruned
            step = done * STEPS // total
            if step > (done - 1) * STEPS // total:
                trial.report(-loss, step)
                # The settings in force are the first to be finished, so nothing can prune them.
                if trial.should_prune():
                    raise optuna.TrialPruned

        said = self._said(chosen, watch)
        found = self._ngini(said)
        if not np.isfinite(found):
            raise optuna.TrialPruned
        self.said[trial.number] = said
        return found

    def _settings(self, params: Mapping[str, Any]) -> TrainingSettings:
        return TrainingSettings(**{**self.base.model_dump(), **params})

    def _said(self, settings: TrainingSettings, watch: trainer.Watch | None = None) -> Values:
        """(N,) expected values of the judged rows by the exported generation."""
        task = self.task
        trained = trainer.train(task.train, settings, watch=watch)
        calibrate_on = newest(task.train, self.windows)
        made = trainer.generation(trained, task.train, calibrate_on=calibrate_on)
        return expected(made, task.judge)[0][:, task.column]

    def _ngini(self, said: Values) -> float:
        """Mean over the validation cut-offs."""
        rows, value = self.task.judge, self.task.judge.value[:, self.task.column]
        found = [
            metrics.ngini(value[rows.window == w], said[rows.window == w])
            for w in np.unique(rows.window)
        ]
        return float(np.mean(found))

    def result(self, study: optuna.Study) -> Tuned:
        """Best of the finished trials, held against the settings in force."""
        finished = _finished(study)
        trials = [self._tried(trial) for trial in finished]
        default = next(
            one for one, trial in zip(trials, finished, strict=True) if _is_default(trial)
        )
        complete = [one for one in trials if one.ngini is not None]
        if not complete:
            raise ScoringError(
                "the settings in force do not train, nor does what was tried: correct training.rate"
                f" ({self.base.rate:g}) and training.decay ({self.base.decay:g}), or ask for more"
                " --trials"
            )
        # of equals the earlier one: the settings in force before any other
        best = max(complete, key=lambda one: (one.ngini or 0.0, -one.number))
        task = self.task
        tuned = Tuned(
            trials,
            default,
            best,
            task.horizon_days,
            np.unique(task.judge.cutoffs_ms[task.judge.window]).tolist(),
            len(np.unique(task.judge.user)),
            task.view.until_ms,
            None if default.ngini is None else Difference(0.0, 0.0, 0.0),
        )
        if best.number == default.number:
            return tuned
        before = self._of(default.settings)
        tuned.settings = {k: v for k, v in self._of(best.settings).items() if v != before[k]}
        if default.ngini is not None:
            # A search that was gone on with has not seen its earlier nets: train them again.
            a, b = (
                self.said[one.number] if one.number in self.said else self._said(one.settings)
                for one in (best, default)
            )
            value = task.judge.value[:, task.column]
            judge = task.judge
            tuned.gain = paired_bootstrap("ngini", value, a, b, judge.user, judge.window)
        return tuned

    def _tried(self, trial: optuna.trial.FrozenTrial) -> Tried:
        took = trial.duration.total_seconds() if trial.duration else 0.0
        value = trial.value if trial.state == TrialState.COMPLETE else None
        return Tried(trial.number, value, self._settings(trial.params), round(took, 2))


def snippet(settings: Mapping[str, Any]) -> str:
    """A `training` table of livevalue.toml; empty where nothing differs.

    >>> print(snippet({"width": 16, "rate": 0.002, "epochs": None}))
    [training]
    width = 16
    rate = 0.002
    # epochs: take the line out
    """
    if not settings:
        return ""
    lines = [
        f"# {name}: take the line out" if value is None else f"{name} = {value!r}"
        for name, value in settings.items()
    ]
    return "\n".join(["[training]", *lines])


def _view(log: Log, asked_ms: int | None) -> View:
    """All that a log holds before `asked_ms`, by its own clock."""
    newest = NO_TIME

    def watched() -> Log:
        nonlocal newest
        for partition, batch in _until(log, asked_ms):
            for found in (batch.log_ms, [one.record_ms for one in batch.erases]):
                newest = max(newest, int(np.max(found, initial=NO_TIME)))
            yield partition, batch

    summary = scan(watched())
    return View(asked_ms, newest + 1, summary)


def _until(log: Log, until_ms: int | None) -> Log:
    """The log as it stood at `until_ms`; users who come later leave no trace."""
    for partition, batch in log:
        yield partition, batch if until_ms is None else split(batch, until_ms)[0]


def _validation(examples: Examples, column: int, lateness_ms: int) -> npt.NDArray[np.int64]:
    """Newest mature cut-offs with value, as many as leave labels of that horizon to train on."""
    mature = examples.mask[:, column]
    paid = mature & (examples.value[:, column] > 0)
    windows = np.unique(examples.window[paid])
    reach = examples.horizons_s[column] * 1000 + lateness_ms
    for count in range(min(WINDOWS, len(windows)), 0, -1):
        first = examples.cutoffs_ms[windows[-count]]
        if (examples.cutoffs_ms[examples.window[mature]] + reach <= first).any():
            return windows[-count:]
    return windows[:0]


def _task(
    examples: Examples, column: int, windows: npt.NDArray[np.int64], lateness_ms: int, view: View
) -> Task:
    first = int(examples.cutoffs_ms[windows[0]])
    ends = examples.cutoffs_ms[examples.window][:, None] + lateness_ms
    ends = ends + np.array(examples.horizons_s, np.int64) * 1000
    known = replace(examples, mask=examples.mask & (ends <= first), clock_ms=first)
    train = trimmed(known.rows(np.flatnonzero(known.mask.any(axis=1))))
    judged = np.flatnonzero(np.isin(examples.window, windows) & examples.mask[:, column])
    return Task(train, examples.rows(judged), column, _shown(examples), view)


def _shown(examples: Examples) -> str:
    """Hash of the exact part of examples: who, when, and what came. Floats differ by machine."""
    found = hashlib.sha256("\0".join(examples.users).encode())
    for part in (
        examples.cutoffs_ms,
        np.array(examples.horizons_s),
        examples.user,
        examples.window,
        examples.value,
        examples.mask,
        examples.position,
        np.array([examples.log_start_ms, examples.clock_ms]),
    ):
        found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _is_default(trial: optuna.trial.FrozenTrial) -> bool:
    return bool(trial.user_attrs.get("default"))


def _plain(one: Tried) -> dict[str, Any]:
    return {
        "number": one.number,
        "ngini": one.ngini,
        "pruned": one.ngini is None,
        "seconds": one.seconds,
        "settings": one.settings.model_dump(mode="json"),
    }
