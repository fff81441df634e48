"""A generation as it would have been made at an instant: from what had arrived by then.

As in protocol T (scoring.judging.evaluation): labels come from rolling cut-offs whose windows end
by the instant; the model is exported and loaded again, as it would serve.
"""

from __future__ import annotations

from collections.abc import Sequence

from scoring.generation import Generation
from scoring.judging.contenders import DAILY
from scoring.judging.cutoffs import BadQuestion
from scoring.judging.point_in_time import PointInTime
from scoring.judging.question import Case, net_horizons
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


def learned(case: Case, as_of_ms: int) -> list[tuple[str, Generation]]:
    """The models asked about, each knowing what had arrived before `as_of_ms`."""
    question, point = case.question, PointInTime(case, as_of_ms, [as_of_ms])
    horizons = net_horizons(question.horizons_days)
    out = []
    for name in askable(question.models):
        kind = TRAINED[DAILY.get(name, name)]
        examples = point.training if kind.trains else None
        out.append((name, kind.make(Ask(examples, horizons, question.training)).whole))
    return out
