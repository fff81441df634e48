"""The models that `retrain` and `evaluate` can train: name, what it is, and how one is made.

torch is imported by the ones that need it, when they are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol

from scoring.errors import ScoringError
from scoring.generation import Generation, prior
from scoring.settings import ModelSettings, TrainingSettings
from scoring.training import distilling
from scoring.training.examples import Examples
from scoring.training.families import refuse_untaken
from scoring.training.splits import held_out, newest
from scoring.training.teacher import Teacher
from scoring.zoo import NETS

BLENDED = ("mingru", "dnn", "gbm", "polynomial")  # see docs/accuracy.md
WINDOWS = 3  # newest mature cut-offs that calibrate
Progress = Callable[[str, int, int], None]  # stage, done, in all


class Fit(Protocol):
    """Examples -> a generation of a family that is fitted in one go."""

    def __call__(self, examples: Examples, *, seed: int, calibrated: bool = True) -> Generation:
        """A teacher needs no calibration."""
        ...


@dataclass(frozen=True, slots=True)
class Ask:
    """What a model is made from."""

    examples: Examples | None  # None for what does not train
    horizons: Sequence[int]  # days
    training: TrainingSettings
    windows: int = WINDOWS  # newest mature cut-offs that calibrate
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """A model, and the same fitted without the users of splits.held_out, who can judge that one.

    They judge its ranking: calibration and teachers, where there are any, know everybody.
    """

    whole: Generation  # of everybody: what serves
    apart: Callable[[], Generation]  # fitted when it is asked for, where it is not there anyway


Make = Callable[[Ask], Made]


@dataclass(frozen=True, slots=True)
class Trainable:
    """One model."""

    about: str
    make: Make
    trains: bool = True  # needs examples
    seeded: bool = True  # another seed gives another model
    holds_out: bool = False  # it is made `apart` on the way, to know when to stop


def family(name: str) -> Trainable:
    """What the setting `training.family` names."""
    kinds = {key: kind for key, kind in TRAINED.items() if kind.trains and key != SERVED}
    if name not in kinds:
        raise ScoringError(
            f"no family is called {name!r}: set training.family to one of {', '.join(kinds)}"
        )
    return kinds[name]


SERVED = "served"


def accepted(settings: TrainingSettings) -> TrainingSettings:
    """As they are; ScoringError, before a log is read, where no family can be trained by them."""
    family(settings.family)
    refuse_untaken(settings)
    _known(settings.teachers)
    return settings


def _known(teachers: Sequence[str]) -> None:
    unknown = [name for name in teachers if name not in TEACHERS]
    if unknown:
        raise ScoringError(
            f"no teacher is called {unknown[0]!r}: set training.teachers to some of"
            f" {', '.join(TEACHERS)}, or to none"
        )


def _served(ask: Ask) -> Made:
    """As scoring.retraining.retrain makes the generation that it publishes."""
    return family(ask.training.family).make(ask)


def _net(name: str, pupil: bool = False) -> Make:
    """A net of scoring.zoo.NETS, trained by `loop`; a pupil learns from teachers, too."""

    def make(ask: Ask) -> Made:
        try:
            from scoring.training import loop as training
        except ImportError as error:
            raise ScoringError(
                f"`{name}` is trained with torch: install the package with its extra `train`, or"
                " name another family (`livevalue evaluate --models list`)"
            ) from error
        examples = ask.examples
        assert examples is not None
        chosen = ask.training.model_copy(update={"family": name})
        teacher = teacher_of(examples, chosen, ask.progress) if pupil else None
        trained = training.train(examples, chosen, ask.progress, teacher=teacher)
        whole = training.refit(examples, trained, ask.progress, teacher=teacher)
        calibrate_on = newest(examples, ask.windows)

        def exported(net: training.Trained) -> Generation:
            return training.generation(net, examples, calibrate_on=calibrate_on)

        return Made(exported(whole), cache(partial(exported, trained)))

    return make


def teacher_of(
    examples: Examples, how: TrainingSettings, progress: Progress | None
) -> Teacher | None:
    """What the families of the setting `teachers` say, out of fold; None if there are none."""
    _known(how.teachers)
    if not how.teachers or not how.teacher_weight:
        return None
    fits = {name: _teaching(name, how) for name in how.teachers}

    def told(done: int, total: int) -> None:
        if progress is not None:
            progress("teach", done, total)

    return distilling.taught(examples, fits, seed=how.seed, told=told)


def _teaching(name: str, how: TrainingSettings) -> Callable[[Examples], Generation]:
    """A family as a teacher: one generation, of `teacher_seeds` that have one voice."""

    def fitted(examples: Examples, seed: int) -> Generation:
        if name in FITS:
            return FITS[name](examples, seed=seed, calibrated=False)
        from scoring.training import loop as training

        own = how.model_copy(update={"family": name, "seed": seed})
        return training.generation(training.train(examples, own), examples)

    def fit(examples: Examples) -> Generation:
        seeds = how.teacher_seeds if TRAINED[name].seeded else 1
        made = [fitted(examples, how.seed + more) for more in range(seeds)]
        if len(made) == 1:
            return made[0]
        from scoring.zoo import blend

        return blend.generation(made)

    return fit


def _two_part(fit: Fit) -> Make:
    """A family that is fitted in one go."""

    def make(ask: Ask) -> Made:
        rows, seed = ask.examples, ask.training.seed
        assert rows is not None
        tell = ask.progress or (lambda stage, done, total: None)
        tell("train", 0, 1)
        whole = fit(rows, seed=seed)
        tell("train", 1, 1)
        return Made(whole, lambda: fit(rows.rows(~held_out(rows, ask.training)), seed=seed))

    return make


def _linear(examples: Examples, *, seed: int, calibrated: bool = True) -> Generation:
    from scoring.zoo import linear

    return linear.train(examples, calibrated=calibrated)


def _graph(examples: Examples, *, seed: int, calibrated: bool = True) -> Generation:
    from scoring.zoo import graph

    return graph.train(examples)


def _polynomial(examples: Examples, *, seed: int, calibrated: bool = True) -> Generation:
    from scoring.zoo import polynomial

    return polynomial.train(examples, calibrated=calibrated)


def _svr(examples: Examples, *, seed: int, calibrated: bool = True) -> Generation:
    from scoring.zoo import svr

    return svr.train(examples, calibrated=calibrated)


def _svr_rff(examples: Examples, *, seed: int, calibrated: bool = True) -> Generation:
    from scoring.zoo import svr

    return svr.train(examples, svr.FOURIER, seed=seed, calibrated=calibrated)


def _gbm(examples: Examples, *, seed: int, calibrated: bool = True) -> Generation:
    from scoring.zoo import gbm

    return gbm.train(examples, seed=seed, calibrated=calibrated)


# Families that are fitted in seconds.
FITS: dict[str, Fit] = {
    "gbm": _gbm,
    "graph": _graph,
    "linear": _linear,
    "polynomial": _polynomial,
    "svr": _svr,
    "svr_rff": _svr_rff,
}
# What a net may learn from: those, and nets.
TEACHERS = (*sorted(FITS), *NETS)


def _blend(ask: Ask) -> Made:
    from scoring.zoo import blend

    members = [TRAINED[name].make(ask) for name in BLENDED]
    return Made(
        blend.generation([one.whole for one in members]),
        lambda: blend.generation([one.apart() for one in members]),
    )


def _prior(ask: Ask) -> Made:
    days = tuple(ask.horizons)
    made = prior(ModelSettings(horizons_days=days, headline=f"d{max(days)}"))
    return Made(made, lambda: made)


TRAINED: dict[str, Trainable] = {
    SERVED: Trainable("what retrain makes (setting training.family), as served", _served),
    "mingru": Trainable("minGRU beside the features", _net("mingru", pupil=True), holds_out=True),
    "gru": Trainable("GRU beside the features", _net("gru"), holds_out=True),
    "transformer": Trainable(
        "Transformer over the last events, beside the features",
        _net("transformer"),
        holds_out=True,
    ),
    "dnn": Trainable("ZILN network on the features alone", _net("dnn"), holds_out=True),
    "mlp": Trainable(
        "the textbook's three layers on recency, frequency and money, squared error",
        _net("mlp"),
        holds_out=True,
    ),
    "gbm": Trainable("LightGBM, two-part", _two_part(_gbm)),
    "blend": Trainable(f"the mean of {', '.join(BLENDED)}: a ceiling, dear to serve", _blend),
    "linear": Trainable("linear regression, two-part", _two_part(_linear), seeded=False),
    "graph": Trainable(
        "linear on features, edges and neighbours' worth", _two_part(_graph), seeded=False
    ),
    "polynomial": Trainable(
        "regression on squares and products too, two-part", _two_part(_polynomial), seeded=False
    ),
    "svr": Trainable("support vector regression, linear, two-part", _two_part(_svr), seeded=False),
    "svr_rff": Trainable("support vector regression, Gaussian kernel", _two_part(_svr_rff)),
    "prior": Trainable("the untrained start of a deployment", _prior, trains=False, seeded=False),
}
