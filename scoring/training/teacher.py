"""What a teacher says of example rows, for a net that learns from it beside the labels.

A teacher is any model or blend that has scored the rows that a net is trained on: its expected
value and P(active) per horizon, in the order of the rows. NaN is no opinion, of a row or of one of
its horizons, as where a teacher was itself trained on the row's label. It may speak of rows whose
labels are not mature yet: those are then learned from, too.

    said = Teacher(expected, p_active)          # (N, H) each, cumulative over horizons
    training.train(examples, settings, teacher=said)

How much it counts is the setting `teacher_weight`; the loss is in scoring.training.losses.
Source: Hinton, Vinyals & Dean 2015, arXiv:1503.02531.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scoring.errors import ScoringError
from scoring.training.examples import Examples


@dataclass(frozen=True, slots=True)
class Teacher:
    """Outputs for N example rows and H horizons; cumulative, major units."""

    expected: npt.NDArray[np.floating]  # (N, H) >= 0, or NaN
    p_active: npt.NDArray[np.floating]  # (N, H) in [0, 1], or NaN

    def known(self) -> npt.NDArray[np.bool_]:
        """(N, H) where it says both."""
        both: npt.NDArray[np.bool_] = np.isfinite(self.expected) & np.isfinite(self.p_active)
        return both

    def rows(self, keep: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Teacher:
        """Of some of the rows."""
        return Teacher(self.expected[keep], self.p_active[keep])

    def check(self, examples: Examples) -> None:
        """Refuse what cannot have been said of these examples."""
        shape = examples.value.shape
        for name, said in (("expected", self.expected), ("p_active", self.p_active)):
            if said.shape != shape:
                raise ScoringError(
                    f"the teacher's {name} has shape {said.shape}, the examples {shape}: score the"
                    " rows that are trained on, in their order"
                )
        known = self.known()
        if (self.expected[known] < 0).any() or (np.abs(self.p_active[known] - 0.5) > 0.5).any():
            raise ScoringError(
                "the teacher says a negative value, or a probability outside 0 to 1: give its"
                " predictions as they are served"
            )
