"""One hop over the social graph: a user's features, edges, interests, and his neighbours' worth.

A graph convolution of one layer (Kipf & Welling 2017, arXiv:1609.02907) multiplies the normalised
adjacency with the features and then with a matrix of weights. The first product needs other users
and is done by retrain (scoring.training.social_graph); what is left is a linear model on its result
(Wu et al. 2019, arXiv:1902.07153), here two-part as in scoring.zoo.two_part. The user's own
features stand beside his neighbours', instead of being mixed with them: they are live, those are as
old as the table that the generation carries (scoring.social).

On a log without edges it is a linear model of the features alone.

Cost: about 80 features x 9 weights; a matrix product a query time; no carry; 28 bytes of the
generation for each user with a neighbour. Shapes as in scoring.zoo.two_part.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from safetensors.numpy import save

from scoring.generation import Generation, Manifest, build
from scoring.inputs import HELD_NAMES
from scoring.interface import Floats
from scoring.training.columns import Columns
from scoring.training.examples import Examples
from scoring.zoo import two_part
from scoring.zoo.seen import DRIFTING, moved_by, unseen
from scoring.zoo.two_part import Labels, Mask, Scaling, TwoPart

RIDGE = 30.0  # in examples: standardised weights are pulled to 0 as by so many of them


def load(manifest: Manifest, files: Mapping[str, bytes]) -> TwoPart:
    """Found by scoring.zoo.FAMILIES."""
    return TwoPart(manifest, files)


def train(examples: Examples, ridge: float = RIDGE) -> Generation:
    """Fit on all cut-offs, calibrated on the newest."""

    def fitted(manifest: Manifest, rows: Examples) -> Generation:
        columns = Columns.of(rows)
        x = columns.read(rows)
        # as the other linear families, it reads windows, not what is held
        silent = moved_by(unseen(rows.seen_types)) | DRIFTING | {*HELD_NAMES}
        keep = two_part.varies(x) & np.array([name not in silent for name in columns.names])
        arrays = fit(x[:, keep], Labels.of(rows), ridge)
        return generation(manifest, columns, keep, arrays)

    return two_part.train("graph", examples, fitted, {"ridge": ridge})


def fit(x: Floats, labels: Labels, ridge: float = RIDGE) -> dict[str, Floats]:
    """The family's arrays from columns that vary (N, F)."""
    scaling = Scaling.of(x)
    parts = two_part.fit_parts(
        scaling(x),
        labels,
        partial(two_part.logistic, ridge=ridge),
        partial(two_part.level, ridge=ridge),
    )
    return {**scaling.arrays(), **parts}


def generation(
    manifest: Manifest, columns: Columns, keep: Mask, arrays: Mapping[str, Floats]
) -> Generation:
    """Fitted arrays, with what the columns are read by; `keep` marks those that are fitted."""
    names = columns.names
    trained = tuple(name for name, kept in zip(names, keep.tolist(), strict=True) if kept)
    parameters = sum(a.size for a in arrays.values())
    params = {**manifest.params, "parameters": parameters, **columns.facts()}
    manifest = manifest.model_copy(
        update={"features": names, "trained_features": trained, "params": params}
    )
    manifest = two_part.with_bounds(manifest, arrays)
    return build(manifest, {two_part.FILE: save(dict(arrays)), **columns.files()})
