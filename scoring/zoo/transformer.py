"""The served form of the Transformer family: a ring of keys and values in the carry, in numpy.

A causal Transformer (Vaswani et al. 2017, arXiv:1706.03762) whose layers look at the last V events
only (sliding window, Beltagy et al. 2020, arXiv:2004.05150). So that an event costs one step and
not a user's whole past, the carry holds the keys and values of his last V events, for each layer,
in a ring: what an event's attention needs of the past was computed when the past happened. Layers
see through each other's windows, so two of them reach 2V - 1 events back. Distance within the
window is a learned bias per head (Shaw et al. 2018, arXiv:1803.02155; no position is absolute, so
nothing grows with a user's age); layers are normalised by RMS (arXiv:1910.07467).

Carry, C = D + 1 + 2 L V D floats: the readout of the last event (D), how many events the ring has
taken (below 2V, then between V and 2V), and the ring (L, V, keys and values, D). The
events of a batch are taken together: those of one user look at the ring and at each other.

Shapes as in scoring.interface; D width, G heads, L layers, V window. The net and its training are
in transformer_net.py, which imports torch; this module does not.
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
CLIP = np.float32(6.0)  # of standardised tokens, as scoring.zoo.nets clips features
EPS = np.float32(1e-6)
STEPS_AT_ONCE = 4096  # their windows take 4096 x V x D floats

Ints = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]


class Transformer:
    """A trained generation: implements scoring.interface.ValueModel."""

    def __init__(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        self._arrays = arrays = weights(file(files, WEIGHTS))
        self._layers, self._groups, self._window = arrays["distance"].shape
        self._width = arrays["embed"].shape[1]
        self._known = Known(manifest)
        self._heads = Heads(manifest, files)
        self.carry_size = self._width + 1 + 2 * self._layers * self._window * self._width
        self.horizons_s = manifest.horizons_s

    def advance(self, carries: Floats, rows: npt.NDArray[np.int32], tokens: Floats) -> Floats:
        """Step `carries` (U, C) by `tokens` (M, T) in order; the input is left alone.

        Steps of a type that was not seen in training are passed over.
        """
        out = carries.copy()
        rows, tokens = self._known(rows, tokens)
        if not len(rows):
            return out
        order = np.argsort(rows, kind="stable")
        rows, tokens = rows[order], tokens[order]
        begin = 0
        while begin < len(rows):
            end = begin + STEPS_AT_ONCE
            if end < len(rows):
                # whole users: none of them looks at another
                end = int(np.searchsorted(rows, rows[end - 1], side="right"))
            self._take(out, Runs.of(rows[begin:end], tokens[begin:end]))
            begin = end
        return out

    def _take(self, carries: Floats, runs: Runs) -> None:
        """Step the carries of some users, in place."""
        a, width, window = self._arrays, self._width, self._window
        taken = carries[runs.users, width].astype(np.intp)  # (R,)
        ring = carries[runs.users, width + 1 :].reshape(-1, self._layers, window, 2, width)
        run = np.repeat(np.arange(len(runs.users)), runs.last - runs.first + 1)
        where, open_ = _looks(runs.rank, run, taken, window)
        x = np.clip((runs.tokens - a["token_mean"]) * a["token_scale"], -CLIP, CLIP) @ a["embed"]
        x += a["embed_bias"]
        # only the last V events of a user stay in the ring
        stays = np.flatnonzero(runs.last[run] - np.arange(len(run)) < window)
        slot = (taken[run[stays]] + runs.rank[stays]) % window
        for layer in range(self._layers):
            q, k, v = np.split(_norm(x, a["norm_1"][layer]) @ a["qkv"][layer], 3, axis=1)
            past = ring[:, layer].reshape(-1, 2, width)
            keys, values = np.concatenate([past[:, 0], k]), np.concatenate([past[:, 1], v])
            seen = self._attend(q, keys[where], values[where], open_, a["distance"][layer])
            x = x + seen @ a["merge"][layer]
            wide = _norm(x, a["norm_2"][layer]) @ a["up"][layer] + a["up_bias"][layer]
            x = x + np.maximum(wide, 0) @ a["down"][layer] + a["down_bias"][layer]
            # `keys` and `values` are copies: what was looked at stays as it was
            ring[run[stays], layer, slot, 0] = k[stays]
            ring[run[stays], layer, slot, 1] = v[stays]
        total = taken + runs.last - runs.first + 1
        total = np.where(total >= 2 * window, window + total % window, total)
        carries[runs.users, :width] = _norm(x[runs.last], a["norm_out"])
        carries[runs.users, width] = total
        carries[runs.users, width + 1 :] = ring.reshape(len(runs.users), -1)

    def _attend(
        self, q: Floats, keys: Floats, values: Floats, open_: Flags, near: Floats
    ) -> Floats:
        """(M, D), (M, V, D), (M, V, D), whether there is something at each distance -> (M, D)."""
        steps, window, groups = len(q), self._window, self._groups
        size = self._width // groups
        split = keys.reshape(steps, window, groups, size)
        score = np.einsum("mgs,mvgs->mgv", q.reshape(steps, groups, size), split)
        score = score / np.float32(np.sqrt(size)) + near
        score = np.where(open_[:, None], score, -np.inf)
        weight = np.exp(score - score.max(axis=-1, keepdims=True))
        weight /= weight.sum(axis=-1, keepdims=True)
        values = values.reshape(steps, window, groups, size)
        out: Floats = np.einsum("mgv,mvgs->mgs", weight, values).reshape(steps, self._width)
        return out

    def predict(self, carries: Floats, features: Floats) -> Prediction:
        """`carries` (U, C), `features` (U, K, F) -> Prediction, calibrated."""
        return self._heads(features, np.ascontiguousarray(carries[:, : self._width]))


def _looks(rank: Ints, run: Ints, taken: Ints, window: int) -> tuple[Ints, Flags]:
    """Where each step finds the event at each distance (M, V), and whether there is one.

    Rows of the rings, one user's after the other, come before the batch's own steps.
    """
    distance = np.arange(window)
    here = rank[:, None] - distance  # rank of the event looked at; below 0 it is in the ring
    old = run[:, None] * window + (taken[run][:, None] + here) % window
    own = len(taken) * window + np.arange(len(rank))[:, None] - distance
    where = np.where(here >= 0, own, old)
    return where, here >= -np.minimum(taken, window)[run][:, None]


def _norm(x: Floats, gain: Floats) -> Floats:
    out: Floats = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPS) * gain
    return out


def load(manifest: Manifest, files: Mapping[str, bytes]) -> Transformer:
    """Found by scoring.zoo.FAMILIES."""
    return Transformer(manifest, files)
