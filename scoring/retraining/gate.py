"""The gate: may a candidate replace the champion?

By origins (two recipes): both are refitted at the same rolling origins on what was known there and
judged on the windows after them (scoring.retraining.origins). The candidate passes where the lower
bound of the difference in nGini, mean over origins, is not below `ngini_low`, and its level is not
further off by more than `log_bias`. The interval comes from a paired bootstrap over users, each
drawn with all of his origins. Level is the mean over origins of |log(predicted / actual)|: too much
at one origin does not make up for too little at another.

By files: two generations score the same rows at the newest mature cut-offs. So where recipes
cannot be refitted (no origin, or none recorded): the rows are of users who are held out, and the
candidate is fitted without them for that; the champion may have learned from them, which favours
it. And so to guard against an accident where the recipe is the champion's own: then the recipes
differ by nothing, the gate is passed by identity, both files have learned from all users, whose
rows these are, and the new one is refused only where it is clearly worse, that is where the *upper*
bound is below `ngini_low`. The same burden lies on `prior`: what was never trained is not owed a
proof that it is beaten.

See docs/adr/0009.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.wording import counted
from scoring.judging import metrics
from scoring.judging.bootstrap import Difference, paired_bootstrap
from scoring.retraining.origins import Said
from scoring.retraining.settings import RetrainSettings

Values = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
TINY = 1e-6


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the candidate may serve, why, and the figures."""

    passed: bool
    reason: str
    facts: dict[str, Any]


def by_origins(
    mine: Mapping[int, Said],
    theirs: Mapping[int, Said],
    settings: RetrainSettings,
    *,
    lenient: bool,
) -> Verdict:
    """Two recipes at the origins where both could be refitted. lenient: against the prior."""
    shared = sorted(set(mine) & set(theirs))
    rows = [mine[at].rows for at in shared]
    column = mine[shared[0]].column
    value = np.concatenate([part.value[:, column] for part in rows])
    user = np.concatenate([part.user for part in rows])
    window = np.concatenate([np.full(len(part), n) for n, part in enumerate(rows)])
    return judge(
        value,
        np.concatenate([mine[at].expected for at in shared]),
        np.concatenate([theirs[at].expected for at in shared]),
        user,
        window,
        settings,
        lenient=lenient,
        where=counted(len(shared), "origin"),
    )


def judge(
    value: Values,
    new: Values,
    old: Values,
    user: Ints,
    window: Ints,
    settings: RetrainSettings,
    *,
    lenient: bool,
    where: str,
) -> Verdict:
    """Two predictions (N,) of the same rows. lenient: only what is clearly worse is refused."""
    found = paired_bootstrap(
        "ngini",
        value,
        new,
        old,
        user,
        window,
        settings.draws,
        settings.seed,
        settings.confidence,
    )
    off_new, off_old = _off(value, new, window), _off(value, old, window)
    facts = {
        "ngini_delta": _round(found.delta),
        "ngini_low": _round(found.low),
        "ngini_high": _round(found.high),
        "confidence": settings.confidence,
        "bias": _round(metrics.bias(value, new)),
        "bias_champion": _round(metrics.bias(value, old)),
        "level_off": _round(off_new),
        "level_off_champion": _round(off_old),
        "users": len(np.unique(user)),
        "judged": where,
    }
    return _verdict(found, off_new, off_old, settings, facts, lenient)


def _verdict(
    found: Difference,
    off_new: float,
    off_old: float,
    settings: RetrainSettings,
    facts: dict[str, Any],
    lenient: bool,
) -> Verdict:
    ranks = f"nGini {found.delta:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    levels = (
        f"bias {_said(facts['bias'])} after {_said(facts['bias_champion'])}, off by {off_new:.2f}"
        f" after {off_old:.2f}"
    )
    said = f"{ranks}; {levels}; {facts['judged']}"
    if not np.isfinite(found.delta):
        reason = (
            f"refused: nobody spent in the windows that judge ({facts['judged']}), so nothing can"
            " be told of either; if the log ends with a stray date, take it out"
        )
        return Verdict(False, reason, facts)
    bound = found.high if lenient else found.low
    # A comparison with NaN is false: what cannot be told is no pass.
    if not bound >= settings.ngini_low:
        how = "it ranks clearly worse" if lenient else "it may rank worse"
        return Verdict(False, f"refused: {how} than the champion ({said})", facts)
    if not off_new <= off_old + settings.log_bias:
        reason = f"refused: its level is further off than the champion's ({said})"
        return Verdict(False, reason, facts)
    return Verdict(True, f"no worse than the champion ({said})", facts)


def _off(value: Values, said: Values, window: Ints) -> float:
    """Mean over windows of |log bias|."""
    off = []
    for one in np.unique(window):
        at = window == one
        bias = metrics.bias(value[at], said[at])
        if np.isfinite(bias):
            off.append(abs(float(np.log(max(bias, TINY)))))
    return float(np.mean(off)) if off else float("nan")


def _said(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f}"


def _round(number: float) -> float | None:
    return round(float(number), 5) if np.isfinite(number) else None
