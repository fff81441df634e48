"""The level corrector: does a generation still say too much or too little, lately?

Rank and level drift apart. The calibration of a generation sets its level by the newest three
mature cut-offs of each horizon, so a long horizon's is as old as the horizon is long. The
corrector looks at the short windows that have matured last, takes one factor from what came true
there over what was said, and multiplies the level of every horizon by it. One factor for all keeps
ranks within each horizon and the order of the horizons.

What was so lately need not stay so: a corrector chases noise as well as drift. It is kept only
where it would have brought the total nearer to the truth at enough of the rolling origins; the
manifest holds the factor, the verdict and each origin's figures either way.

Shapes: N rows, H horizons as in scoring.training.examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featurestore import times
from scoring.generation import Generation, build
from scoring.judging.metrics import number
from scoring.training.examples import Examples
from scoring.training.recipes import expected

FACTOR = (0.5, 2.0)
SPENDERS = 100.0  # at so many half of the ratio is believed


@dataclass(frozen=True, slots=True)
class Tried:
    """The corrector at one origin, where it is known what came after."""

    as_of: str
    factor: float
    bias: float  # predicted over actual, without it
    corrected: float  # and with it

    @classmethod
    def at(cls, at_ms: int, factor: float, bias: float) -> Tried:
        """Rounded, as the manifest holds it."""
        corrected = round(bias * factor, 5)
        return cls(times.text(at_ms), round(factor, 5), round(bias, 5), corrected)

    @property
    def helps(self) -> bool:
        """Is the total nearer to the truth with it?

        >>> Tried("", 1.2, 0.8, 0.96).helps, Tried("", 0.9, 0.8, 0.72).helps
        (True, False)
        """
        return _off(self.corrected) < _off(self.bias)


def _off(bias: float) -> float:
    return abs(float(np.log(bias))) if bias > 0 and np.isfinite(bias) else float("inf")


@dataclass(frozen=True, slots=True)
class Corrector:
    """What the origins say of it."""

    factor: float  # at the newest windows; applied where it is kept
    kept: bool
    origins: tuple[Tried, ...]

    @classmethod
    def judged(cls, factor: float, origins: Sequence[Tried], helps: int) -> Corrector:
        """Kept where it helps at `helps` origins at least."""
        kept = sum(one.helps for one in origins) >= helps
        return cls(round(factor, 5), kept, tuple(origins))

    def as_json(self) -> dict[str, Any]:
        """For the manifest and the report; where nobody spent after an origin there is no level."""
        return {
            "factor": self.factor,
            "kept": self.kept,
            "helped": sum(one.helps for one in self.origins),
            "origins": [
                {
                    **asdict(one),
                    "bias": number(one.bias),
                    "corrected": number(one.corrected),
                    "helps": one.helps,
                }
                for one in self.origins
            ],
        }


def factor(made: Generation, known: Examples, column: int) -> float:
    """What came true over what was said, in the newest mature window of each short horizon.

    `known`: rows with the labels that are mature; short are horizons up to index `column`.
    Totals of few spenders are noise: the factor is drawn towards 1 by their number.
    """
    came = told = 0.0
    spenders = 0
    for h in range(column + 1):
        mature = known.mask[:, h]
        if not mature.any():
            continue
        rows = known.rows(mature & (known.window == known.window[mature].max()))
        came += float(rows.value[:, h].sum())
        told += float(expected(made, rows)[0][:, h].sum())
        spenders += int((rows.value[:, h] > 0).sum())
    if came <= 0 or told <= 0:
        return 1.0
    trust = spenders / (spenders + SPENDERS)
    return float(np.clip(np.exp(trust * np.log(came / told)), *FACTOR))


def corrected(made: Generation, factor: float) -> Generation:
    """The generation with the level of every horizon times `factor`."""
    horizons = len(made.manifest.horizons_s)
    now = made.manifest.calibration or {
        "slope": 1.0,
        "shift": [0.0] * horizons,
        "level": [1.0] * horizons,
    }
    calibration = {**now, "level": [level * factor for level in now["level"]]}
    manifest = made.manifest.model_copy(update={"calibration": calibration})
    return build(manifest, {name: made.files[name] for name in made.manifest.sha256})
