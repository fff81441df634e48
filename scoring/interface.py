"""What every model family offers to the worker: advance a carry, predict from carry and features.

Shapes: U users, M steps, C carry size, F features (featurestore.features.FEATURES), T token
size (featurestore.vector.TOKENS), K query times (knot 0 = now, then knots of silence),
H horizons. float32 throughout; money in major units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Values of U users at K query times for H horizons, calibrated and ordered by horizon."""

    expected: Floats  # (U, K, H) E[max(0, net value in the horizon)]
    p_active: Floats  # (U, K, H) P(at least one positive value event in it)
    p50: Floats  # (U, H) quantiles at knot 0, of the whole mixture
    p90: Floats  # (U, H)
    if_active: Floats  # (U, H, 3) p10, p50, p90 of the value given that there is one


class ValueModel(Protocol):
    """A generation ready to serve. Carries are opaque float32 rows; zeros start a user."""

    carry_size: int  # C, 0 for families without a carry
    horizons_s: tuple[int, ...]  # (H,) ascending, seconds

    def advance(self, carries: Floats, rows: npt.NDArray[np.int32], tokens: Floats) -> Floats:
        """Step `carries` (U, C) by `tokens` (M, T); step m belongs to user rows[m].

        Steps of one user stand in fold order. Returns new carries, leaves the input alone.
        """
        ...

    def predict(self, carries: Floats, features: Floats) -> Prediction:
        """`carries` (U, C), `features` (U, K, F) -> Prediction."""
        ...
