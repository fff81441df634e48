"""Tune: search the training settings of the served net, judged on cut-offs of the log itself.

The log is folded once, up to `until` (scoring.retraining.task); the objective is the nGini of the
exported, calibrated generation, mean over the validation cut-offs. Trial 0 is the settings in
force: what tuning brings is said against it, with an interval. Teachers that are in force speak
once, of the rows that are trained on, fitted with the settings in force; every trial learns from
that.

A search is Optuna's TPE with one seed per trial number, so that a search that was stopped and gone
on with tries what an unbroken one tries. After a fifth of its epochs a trial is pruned when its
best held-out loss is worse than the median of earlier trials at the same share of theirs.

Trials are chosen on the rows that they are compared on, so the best one's gain is flattered; judge
it again by `livevalue evaluate` at a cut-off after `until`. Source: Optuna, arXiv:1907.10902.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from scoring.errors import ScoringError
from scoring.judging import metrics
from scoring.judging.bootstrap import Difference, paired_bootstrap
from scoring.retraining.journal import Journal
from scoring.retraining.space import SPACE, Choice, Dimension
from scoring.retraining.task import Task
from scoring.settings import TrainingSettings
from scoring.training.families import takes
from scoring.training.recipes import Progress, expected
from scoring.training.splits import newest
from scoring.training.teacher import Teacher
from scoring.training.trainable import teacher_of

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

Values = npt.NDArray[np.float64]


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


def tune(
    task: Task,
    journal: Journal,
    *,
    trials: int,
    base: TrainingSettings | None = None,
    seed: int = 0,
    windows: int = 3,
    space: Sequence[Dimension] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Tuned:
    """Try settings until `trials` are finished (complete or pruned), those in the journal too.

    `base`: the settings in force, trial 0. `space`: SPACE, as far as the family takes it.
    An interrupted call leaves a journal to go on from.
    """
    base = base or TrainingSettings()
    if space is None:
        space = [d for d in SPACE if d.name in takes(base)]
    held = tuple(d.holding(getattr(base, d.name)) for d in space)
    search = _Search(task, base, windows, held, progress)
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
    tell: Progress
    said: dict[int, Values] = field(default_factory=dict)  # trial -> (N,) values of judged rows
    teacher: Teacher | None = None  # of the rows trained on, once the first net is trained

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
        if self.teacher is None:
            self.teacher = teacher_of(task.train, self.base, self.tell)
        trained = trainer.train(task.train, settings, watch=watch, teacher=self.teacher)
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
