"""Set right what a model says of activity and of level, without touching its ranking.

Two small maps, fitted on validation examples and kept as arrays in the manifest:
- activity: logit p' = slope x logit p + shift[h], slope > 0 (Platt 1999, one slope for all);
- level: expected' = level[h] x expected.
`shift` and `level` are non-decreasing over the horizons. That is what keeps both promises at
once, for any input: a map that increases strictly keeps ranks within each horizon, and one that
does not fall from horizon to horizon keeps horizons ordered. A per-horizon map without that
bound needs a running maximum afterwards, which reorders users.

Shapes: N examples, U users, K query times, H horizons. numpy only: the worker applies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scoring.interface import Floats

Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

SLOPE = (0.2, 5.0)  # a steeper or flatter map comes from too few examples, not from the model
LEVEL = (0.25, 4.0)  # the same for the level
SHIFT = 4.0
_P = np.float32(1e-7)  # probabilities are kept this far from 0 and 1, where the logit is infinite


@dataclass(frozen=True, slots=True)
class Calibration:
    """Fitted maps; called with a model's output it gives the arguments of heads.prediction."""

    slope: float
    shift: Floats  # (H,) non-decreasing
    level: Floats  # (H,) non-decreasing

    def __call__(self, expected: Floats, p_active: Floats) -> tuple[Floats, Floats]:
        """Raw (U, K, H) -> `level` (H,) and the calibrated activity (U, K, H)."""
        if expected.shape[-1] != len(self.level):
            raise ValueError(
                f"calibrated for {len(self.level)} horizons, used with {expected.shape[-1]}"
            )
        return self.level, self.activity(p_active)

    def activity(self, p_active: Floats) -> Floats:
        """Calibrated probabilities; what was exactly 0 or 1 stays so."""
        p = np.clip(p_active, _P, 1 - _P)
        z = np.float32(self.slope) * (np.log(p) - np.log1p(-p)) + self.shift
        out = (1 / (1 + np.exp(-z))).astype(np.float32)
        # a user who cannot be active must not become so by a map
        return np.where((p_active <= 0) | (p_active >= 1), np.clip(p_active, 0, 1), out)

    def dump(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "slope": float(self.slope),
            "shift": [float(x) for x in self.shift],
            "level": [float(x) for x in self.level],
        }


class Identity:
    """No calibration."""

    def __call__(self, expected: Floats, p_active: Floats) -> tuple[None, None]:
        """Nothing changes."""
        return None, None

    def dump(self) -> dict[str, Any]:
        """For the manifest."""
        return {}


def of(stored: Mapping[str, Any]) -> Calibration | Identity:
    """Read back what `dump` wrote; {} is none.

    >>> raw = np.array([[[0.1, 0.3]]], np.float32)
    >>> made = of({"slope": 1.0, "shift": [0.0, 0.0], "level": [1.0, 2.0]})
    >>> level, active = made(raw, raw)
    >>> level.tolist(), np.allclose(active, raw)
    ([1.0, 2.0], True)
    >>> of({})(raw, raw)
    (None, None)
    """
    if not stored:
        return Identity()
    return Calibration(
        float(stored["slope"]),
        np.asarray(stored["shift"], np.float32),
        np.asarray(stored["level"], np.float32),
    )


def fit(
    expected: npt.NDArray[np.floating],
    p_active: npt.NDArray[np.floating],
    value: npt.NDArray[np.floating],
    active: Mask,
    mask: Mask,
) -> Calibration:
    """Fit both maps on validation examples; all arguments (N, H), cumulative over horizons.

    `mask` marks mature labels. A horizon without enough of them takes its neighbour's numbers
    through the monotone pooling, with weight 0 of its own.
    """
    level = _level(expected.astype(np.float64), value.astype(np.float64), mask)
    slope, shift = _activity(p_active.astype(np.float64), active, mask)
    return Calibration(slope, shift.astype(np.float32), level.astype(np.float32))


def _level(expected: Doubles, value: Doubles, mask: Mask) -> Doubles:
    said = np.where(mask, expected, 0).sum(0)
    made = np.where(mask, value, 0).sum(0)
    ratio = np.divide(made, said, out=np.ones_like(said), where=(said > 0) & (made > 0))
    # noise of a total of few spenders: shrink towards "no change" by their number
    spenders = (np.where(mask, value, 0) > 0).sum(0)
    trust = spenders / (spenders + 100.0)
    ratio = np.exp(trust * np.log(np.clip(ratio, *LEVEL)))
    return pool(ratio, said)


def _activity(p: Doubles, active: Mask, mask: Mask) -> tuple[float, Doubles]:
    """Newton's method on the log-loss with a weak pull to slope 1 and shift 0."""
    horizons = p.shape[1]
    p = np.clip(p, 1e-7, 1 - 1e-7)
    z = np.log(p) - np.log1p(-p)
    slope, shift = 1.0, np.zeros(horizons)
    prior = 10.0  # as strong as some tens of examples: none without evidence
    for _ in range(30):
        q = 1 / (1 + np.exp(-np.clip(slope * z + shift, -40, 40)))
        error = np.where(mask, q - active, 0)
        weight = np.where(mask, q * (1 - q), 0)
        gradient = np.concatenate(
            ([np.sum(error * z) + prior * (slope - 1)], error.sum(0) + prior * shift)
        )
        hessian = np.diag(np.concatenate(([np.sum(weight * z * z) + prior], weight.sum(0) + prior)))
        hessian[0, 1:] = hessian[1:, 0] = np.sum(weight * z, axis=0)
        step = np.linalg.solve(hessian, gradient)
        step *= min(1.0, 1.0 / max(float(np.abs(step).max()), 1e-12))
        slope = float(np.clip(slope - step[0], *SLOPE))
        shift = np.clip(shift - step[1:], -SHIFT, SHIFT)
        if np.abs(step).max() < 1e-9:
            break
    return slope, pool(shift, mask.sum(0).astype(np.float64))


def pool(values: Doubles, weights: Doubles) -> Doubles:
    """Nearest non-decreasing values, weighted: pool adjacent violators (Ayer et al. 1955).

    >>> pool(np.array([1.0, 3.0, 2.0]), np.array([1.0, 1.0, 3.0])).tolist()
    [1.0, 2.25, 2.25]
    """
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        block = (value, max(weight, 1e-9), 1)
        while blocks and blocks[-1][0] > block[0]:
            v, w, n = blocks.pop()
            total = w + block[1]
            block = ((v * w + block[0] * block[1]) / total, total, n + block[2])
        blocks.append(block)
    return np.concatenate([np.full(n, v) for v, _, n in blocks])
