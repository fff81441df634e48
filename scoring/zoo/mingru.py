"""The served form of the minGRU family: numpy steps the carry, onnxruntime reads it.

A two-layer minGRU (Feng et al. 2024, arXiv:2410.01201): gate z and candidate come from the input
alone, so a layer's steps are h <- (1 - z) h + z c with z and c known beforehand. A batch's steps
are therefore two matrix products for all steps of all users, and an associative scan along each
user's steps: log2(longest run) passes instead of one round per step, and a pass touches only the
steps that still need it (a user with 196 events in a batch costs 8 passes, not 196 rounds).

Shapes as in scoring.interface; W = width of a layer, C = 2 W. The net and its training are in
mingru_net.py, which imports torch; this module does not.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from scoring.generation import Manifest
from scoring.interface import Floats, Prediction
from scoring.serving import weights
from scoring.zoo.served_heads import Heads, file
from scoring.zoo.steps import Known, Runs

WEIGHTS = "weights.safetensors"


class MinGRU:
    """A trained generation: implements scoring.interface.ValueModel."""

    def __init__(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        arrays = weights(file(files, WEIGHTS))
        # (T, 2W) and (W, 2W): gate and candidate side by side; the tokens' standardisation is
        # folded into the first.
        self._input = (arrays["w1"], arrays["w2"])
        self._bias = (arrays["b1"], arrays["b2"])
        self._width = arrays["w2"].shape[0]
        self._known = Known(manifest)
        self._heads = Heads(manifest, files)
        self.carry_size = 2 * self._width
        self.horizons_s = manifest.horizons_s

    def advance(self, carries: Floats, rows: npt.NDArray[np.int32], tokens: Floats) -> Floats:
        """Step `carries` (U, C) by `tokens` (M, T) in order; the input is left alone.

        Steps of a type that was not seen in training are passed over.
        """
        out = carries.copy()
        rows, tokens = self._known(rows, tokens)
        if not len(rows):
            return out
        runs = Runs.of(rows, tokens)
        x, start = runs.tokens, carries[runs.users]
        for layer, (w, b) in enumerate(zip(self._input, self._bias, strict=True)):
            part = slice(layer * self._width, (layer + 1) * self._width)
            x = _scan(x @ w + b, start[:, part], runs, self._width)
            out[runs.users, part] = x[runs.last]
        return out

    def predict(self, carries: Floats, features: Floats) -> Prediction:
        """`carries` (U, C), `features` (U, K, F) -> Prediction, calibrated."""
        return self._heads(features, carries)


def _scan(pre: Floats, start: Floats, runs: Runs, width: int) -> Floats:
    """States after each step: h <- (1 - z) h + z c along each run, starting from `start`.

    Hillis and Steele's scan over the maps h -> a h + b; both stay convex, so nothing grows.
    """
    gate: Floats = np.reciprocal(1 + np.exp(-pre[:, :width]))
    a, b = 1 - gate, gate * pre[:, width:]
    b[runs.first] += a[runs.first] * start
    # nothing reaches over the start of a run any more
    a[runs.first] = 0
    reach, longest = 1, int(runs.rank.max())
    while reach <= longest:
        late = np.flatnonzero(runs.rank >= reach)
        early = late - reach
        a_late = a[late]
        b[late] += a_late * b[early]
        a[late] = a_late * a[early]
        reach *= 2
    return b


def load(manifest: Manifest, files: Mapping[str, bytes]) -> MinGRU:
    """Found by scoring.zoo.FAMILIES."""
    return MinGRU(manifest, files)
