"""The served form of the GRU family: numpy steps the carry, onnxruntime reads it.

One layer of gated recurrent units (Cho et al. 2014, arXiv:1406.1078, in the form of cuDNN: the
reset gate is applied after the product). The gates look at the carry, so a user's steps are taken
one after the other: a batch costs as many rounds as its busiest user has steps, where a minGRU
needs their logarithm. What does not look at the carry is one product for all steps beforehand.

Shapes as in scoring.interface; W = width, C = W. The net and its training are in gru_net.py, which
imports torch; this module does not.
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


class GRU:
    """A trained generation: implements scoring.interface.ValueModel."""

    def __init__(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        arrays = weights(file(files, WEIGHTS))
        # (T, 3W) and (W, 3W): reset, update and new side by side; the tokens' standardisation is
        # folded into the first.
        self._by_token, self._by_carry = arrays["w_token"], arrays["w_carry"]
        self._bias, self._carry_bias = arrays["b_token"], arrays["b_carry"]
        self._known = Known(manifest)
        self._heads = Heads(manifest, files)
        self.carry_size = int(self._by_carry.shape[0])
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
        before = runs.tokens @ self._by_token + self._bias  # (M, 3W)
        length = runs.last - runs.first + 1
        # longest first: those who still have a step are then the first ones
        order = np.argsort(-length, kind="stable")
        first, length = runs.first[order], length[order]
        state = carries[runs.users[order]]
        for step in range(int(length[0])):
            count = int(np.searchsorted(-length, -step))
            state[:count] = self._step(state[:count], before[first[:count] + step])
        out[runs.users[order]] = state
        return out

    def _step(self, h: Floats, x: Floats) -> Floats:
        """(B, W), (B, 3W) -> (B, W)."""
        w = self.carry_size
        g = h @ self._by_carry + self._carry_bias
        gates = _sigmoid(x[:, : 2 * w] + g[:, : 2 * w])
        reset, update = gates[:, :w], gates[:, w:]
        new = np.tanh(x[:, 2 * w :] + reset * g[:, 2 * w :])
        out: Floats = new + update * (h - new)
        return out

    def predict(self, carries: Floats, features: Floats) -> Prediction:
        """`carries` (U, C), `features` (U, K, F) -> Prediction, calibrated."""
        return self._heads(features, carries)


def _sigmoid(x: Floats) -> Floats:
    """Without an overflow on the way."""
    out: Floats = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x))
    return out


def load(manifest: Manifest, files: Mapping[str, bytes]) -> GRU:
    """Found by scoring.zoo.FAMILIES."""
    return GRU(manifest, files)
