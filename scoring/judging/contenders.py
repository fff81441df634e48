"""Who may be judged: the models that train, and what they have to beat, by name."""

from __future__ import annotations

from importlib.util import find_spec

from scoring.judging.baselines.fitted import BASELINES, SECOND_OPINIONS
from scoring.training.trainable import SERVED, TRAINED

# name -> the model that is trained and asked at the last midnight, as a nightly job would be
DAILY = {"daily_gbm": "gbm"}
# Needs its package to be fitted; without it the others are judged all the same.
_WITH_PACKAGE = {"daily_gbm": "lightgbm"}

FITTED = {**BASELINES, **SECOND_OPINIONS}

DEFAULT = (
    SERVED,
    *BASELINES,
    *(name for name, package in _WITH_PACKAGE.items() if find_spec(package)),
)


def model_names() -> dict[str, str]:
    """What `--models list` prints: name -> what it is."""
    trained = {name: kind.about for name, kind in TRAINED.items()}
    daily = {
        name: f"{TRAINED[kind].about}, trained and asked once a day, at midnight"
        for name, kind in DAILY.items()
    }
    fixed = {name: (model.__doc__ or "").splitlines()[0] for name, model in FITTED.items()}
    return {**trained, **daily, **fixed}
