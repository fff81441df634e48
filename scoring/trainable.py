"""The models that `evaluate` can train: name, what it is, and how one is made from examples.

torch is imported by the one that needs it, when it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scoring.errors import ScoringError
from scoring.examples import Examples
from scoring.generation import Generation, prior
from scoring.retrain import RetrainSettings
from scoring.settings import ModelSettings, TrainingSettings

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Trainable:
    """One model: `make(examples, horizons_days, training)` gives a generation ready to score."""

    about: str
    make: Callable[[Examples | None, Sequence[int], TrainingSettings], Generation]
    trains: bool = True  # needs examples
    seeded: bool = True  # another seed gives another model


def _served(
    examples: Examples | None, horizons: Sequence[int], how: TrainingSettings
) -> Generation:
    """As scoring.retrain makes the generation that it publishes."""
    try:
        from scoring import training
    except ImportError as error:
        raise ScoringError(
            "`served` is trained with torch: install the package with its extra `train`, or name"
            " other --models"
        ) from error
    assert examples is not None
    trained = training.train(examples, how)
    newest = training.newest(examples, RetrainSettings().windows)
    return training.generation(trained, examples, calibrate_on=newest)


def _linear(
    examples: Examples | None, horizons: Sequence[int], how: TrainingSettings
) -> Generation:
    from scoring.zoo import linear

    assert examples is not None
    return linear.train(examples)


def _prior(examples: Examples | None, horizons: Sequence[int], how: TrainingSettings) -> Generation:
    return prior(ModelSettings(horizons_days=tuple(horizons), headline=f"d{max(horizons)}"))


TRAINED: dict[str, Trainable] = {
    "served": Trainable("minGRU and features, as exported and served", _served),
    "linear": Trainable("linear two-part model on the features", _linear, seeded=False),
    "prior": Trainable("the untrained start of a deployment", _prior, trains=False, seeded=False),
}
