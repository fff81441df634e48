"""A generation as it would have been made at an instant: from what had arrived by then.

As in protocol T (scoring.judging.evaluation): labels come from rolling cut-offs whose windows end
by the instant; the model is exported and loaded again, as it would serve.
"""

from __future__ import annotations

from collections.abc import Sequence

from featurestore.settings import FeatureSettings
from scoring.generation import Generation
from scoring.judging.contenders import DAILY
from scoring.judging.cutoffs import BadQuestion
from scoring.judging.history import History
from scoring.judging.point_in_time import Log, PointInTime
from scoring.judging.question import Question, net_horizons
from scoring.training.trainable import TRAINED, Ask


def askable(models: Sequence[str]) -> tuple[str, ...]:
    """Those that can be asked of any user at any instant: families, not baselines.

    >>> askable(("served", "pareto_gg", "prior"))
    ('served', 'prior')
    """
    found = tuple(name for name in models if DAILY.get(name, name) in TRAINED)
    if not found:
        raise BadQuestion(f"this asks models at any instant: name one of {', '.join(TRAINED)}")
    return found


def learned(
    log: Log,
    history: History,
    question: Question,
    as_of_ms: int,
    features: FeatureSettings,
    sources: Sequence[str],
) -> list[tuple[str, Generation]]:
    """The models of `question`, each knowing what had arrived before `as_of_ms`."""
    horizons = net_horizons(question.horizons_days)
    point = PointInTime(
        log, history, features, sources, as_of_ms, horizons, question.cutoffs_ms, [as_of_ms]
    )
    out = []
    for name in askable(question.models):
        kind = TRAINED[DAILY.get(name, name)]
        examples = point.training if kind.trains else None
        out.append((name, kind.make(Ask(examples, horizons, question.training)).whole))
    return out
