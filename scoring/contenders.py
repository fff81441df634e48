"""Who may be judged: the models that train and the baselines, by name."""

from __future__ import annotations

from scoring.baselines import BASELINES
from scoring.trainable import SERVED, TRAINED

DEFAULT = (SERVED, *BASELINES)


def model_names() -> dict[str, str]:
    """What `--models list` prints: name -> what it is."""
    trained = {name: kind.about for name, kind in TRAINED.items()}
    fixed = {name: (model.__doc__ or "").splitlines()[0] for name, model in BASELINES.items()}
    return {**trained, **fixed}
