"""A shadow against the champion: what both said of the same users at the same moments.

A pair holds one moment: what readers were served, and what another generation, folded aside from
the same log up to the same point, would have said. Once a label is mature (as in
scoring.retraining.audit) both are judged by it. What either had already seen is no part of the
label.

Shapes as in scoring.retraining.audit: U users of one pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scoring.judging.bootstrap import paired_bootstrap
from scoring.judging.metrics import Values
from scoring.retraining import audit as judging
from scoring.retraining.audit import ALL, Row, Served, Thresholds, Truth

Comparison = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """One moment: the same users in the same order."""

    champion: Served
    shadow: Served

    def known(self, truth: Truth) -> Pair:
        """Without users who were erased since, and each as new as the newer of the two."""
        as_of_ms = np.maximum(self.champion.as_of_ms, self.shadow.as_of_ms)
        return Pair(
            *(
                judging.kept(replace(one, as_of_ms=as_of_ms), truth)[0]
                for one in (self.champion, self.shadow)
            )
        )


@dataclass(frozen=True, slots=True)
class Judged:
    """One pair at one horizon, with what came true."""

    pair: Pair
    days: int
    value: Values  # (U,)
    rows: list[Row]  # of both generations

    @classmethod
    def of(cls, pair: Pair, truth: Truth, days: int, thresholds: Thresholds) -> Judged:
        """A pair as `known` left it."""
        value, active = judging.labels(pair.champion, truth, days)
        rows = [
            {**row, "role": role}
            for role, served in (("champion", pair.champion), ("shadow", pair.shadow))
            for row in judging.judge(served, value, active, days, thresholds)
        ]
        return cls(pair, days, value, rows)


def compare(judged: Sequence[Judged], draws: int = 400, seed: int = 0) -> list[Comparison]:
    """Of each shadow and horizon: ranking and level over all its pairs; differences are its own.

    The interval is of 90 %, by users, each drawn with all snapshots that he is in.
    """
    out = []
    for name, days in sorted({(_name(one.pair.shadow), one.days) for one in judged}):
        these = [one for one in judged if (_name(one.pair.shadow), one.days) == (name, days)]
        users: dict[str, int] = {}
        user = np.array(
            [users.setdefault(u, len(users)) for one in these for u in one.pair.shadow.users]
        )
        window = np.concatenate([np.full(len(one.value), n) for n, one in enumerate(these)])
        value = np.concatenate([one.value for one in these])
        new, old = (
            np.concatenate([served.horizons[days].expected for served in side])
            for side in (
                [one.pair.shadow for one in these],
                [one.pair.champion for one in these],
            )
        )
        found = paired_bootstrap("ngini", value, new, old, user, window, draws, seed, 0.9)
        total = float(value.sum())
        out.append(
            {
                "shadow": name,
                "champion": ", ".join(sorted({_name(one.pair.champion) for one in these})),
                "horizon_days": days,
                "snapshots": len(these),
                "users": len(users),
                "ngini_delta": _round(found.delta),
                "ngini_low": _round(found.low),
                "ngini_high": _round(found.high),
                "bias": _round(float(new.sum()) / total if total > 0 else float("nan")),
                "bias_champion": _round(float(old.sum()) / total if total > 0 else float("nan")),
            }
        )
    return out


def _name(served: Served) -> str:
    return ", ".join(sorted(set(served.generation)))


def whole(rows: Sequence[Row]) -> list[Row]:
    """The rows over all evidence."""
    return [row for row in rows if row["evidence"] == ALL]


def _round(number: float) -> float | None:
    return round(number, 5) if np.isfinite(number) else None
