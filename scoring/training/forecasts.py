"""What models say of users: the forecast of a horizon, and how a generation makes one of rows.

Shapes: N users, one row each; values in major units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scoring import inputs
from scoring.generation import Generation
from scoring.interface import Prediction
from scoring.training.examples import Examples

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of N users for one horizon; None where a model says nothing of the kind."""

    expected: Values  # money
    p_active: Values | None = None  # P(at least one order)
    p10: Values | None = None  # of the value, if active
    p90: Values | None = None

    def rows(self, at: np.ndarray[tuple[int], np.dtype[np.integer]]) -> Forecast:
        """Of some users."""
        return Forecast(
            self.expected[at],
            None if self.p_active is None else self.p_active[at],
            None if self.p10 is None else self.p10[at],
            None if self.p90 is None else self.p90[at],
        )

    @property
    def activity(self) -> Values:
        """What ranks users by how likely they are to order at all."""
        return self.expected if self.p_active is None else self.p_active


def score(generation: Generation, rows: Examples, chunk: int = 4096) -> Prediction:
    """Predictions for example rows by a loaded generation: carry by its steps, then its heads."""
    model, read = generation.model, inputs.of_rows(generation, rows)
    parts: list[Prediction] = []
    for start in range(0, max(len(rows), 1), chunk):
        part = slice(start, start + chunk)
        length = rows.position[part]
        user = np.repeat(np.arange(len(length), dtype=np.int32), length)
        step = np.arange(len(user)) - np.repeat(np.cumsum(length) - length, length)
        tokens = rows.tokens[np.repeat(rows.starts[rows.sequence[part]], length) + step]
        carries = np.zeros((len(length), model.carry_size), np.float32)
        if model.carry_size:
            carries = model.advance(carries, user, tokens)
        parts.append(model.predict(carries, read[part][:, None]))
    names = Prediction.__slots__
    return Prediction(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))
