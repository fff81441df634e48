"""Linear two-part values: per increment a logistic regression of activity, a linear one of level.

The smallest family that learns: no carry, one matrix product to serve, closed-form or IRLS ridge
to fit, in numpy alone. It is what a sequence model has to beat on a business's own log, and the
fallback where there is no torch.

Cost: about 70 features x 9 weights; a matrix product a query time; no carry.
Source: the two-part model of Duan et al. 1983, in scoring.zoo.two_part; increments as in
scoring.heads. Shapes as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from scoring.generation import Generation, Manifest
from scoring.interface import Floats
from scoring.training.examples import Examples
from scoring.zoo import two_part
from scoring.zoo.two_part import Labels, Scaling, TwoPart

RIDGE = 30.0  # in examples: standardised weights are pulled to 0 as by so many of them


def load(manifest: Manifest, files: Mapping[str, bytes]) -> TwoPart:
    """Found by scoring.zoo.FAMILIES."""
    return TwoPart(manifest, files)


def train(examples: Examples, ridge: float = RIDGE, calibrated: bool = True) -> Generation:
    """Fit on all cut-offs, calibrated on the newest."""

    def fitted(manifest: Manifest, rows: Examples) -> Generation:
        keep = two_part.learnable(rows)
        arrays = fit(rows.features[:, keep], Labels.of(rows), ridge)
        return two_part.generation(manifest, keep, arrays)

    return two_part.train("linear", examples, fitted, {"ridge": ridge}, calibrated)


def fit(x: Floats, labels: Labels, ridge: float = RIDGE) -> dict[str, Floats]:
    """The family's arrays from feature columns that vary (N, F)."""
    scaling = Scaling.of(x)
    parts = two_part.fit_parts(
        scaling(x),
        labels,
        partial(two_part.logistic, ridge=ridge),
        partial(two_part.level, ridge=ridge),
    )
    return {**scaling.arrays(), **parts}
