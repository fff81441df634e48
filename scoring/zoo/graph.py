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

from scoring import interests, social
from scoring.generation import Generation, Manifest, build
from scoring.inputs import FEATURE_NAMES, SOCIAL_NAMES
from scoring.interests import INTEREST_NAMES, Directions
from scoring.interface import Floats
from scoring.social import NEAR_NAMES
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
        there, directions = rows.names, None
        if rows.words.any():
            there, directions = (*there, *INTEREST_NAMES), Directions.of(rows.words)
        # In the order in which they are made, so that nothing is moved when serving.
        order = (*FEATURE_NAMES, *SOCIAL_NAMES, *INTEREST_NAMES, *NEAR_NAMES)
        names = tuple(name for name in order if name in there)
        x = rows.read(names, directions)
        silent = moved_by(unseen(rows.seen_types)) | DRIFTING
        keep = two_part.varies(x) & np.array([name not in silent for name in names])
        arrays = fit(x[:, keep], Labels.of(rows), ridge)
        return generation(manifest, names, keep, arrays, rows.table, directions)

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
    manifest: Manifest,
    names: tuple[str, ...],
    keep: Mask,
    arrays: Mapping[str, Floats],
    table: social.Table | None,
    directions: Directions | None = None,
) -> Generation:
    """Fitted arrays, with what else they are read by; `names` are all columns read."""
    trained = tuple(name for name, kept in zip(names, keep.tolist(), strict=True) if kept)
    files = {two_part.FILE: save(dict(arrays))}
    # The table of neighbours is no parameter, though it stands beside them.
    params = {**manifest.params, "parameters": sum(a.size for a in arrays.values())}
    if table is not None:
        files[social.FILE] = table.dump()
        params["users_with_neighbours"] = len(table.keys)
    if directions is not None:
        files[interests.FILE] = directions.dump()
    manifest = manifest.model_copy(
        update={"features": names, "trained_features": trained, "params": params}
    )
    return build(manifest, files)
