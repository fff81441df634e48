"""A recipe: how a generation is made of examples, as its manifest records it.

Family, training settings, and how many cut-offs it learns from and is calibrated on. With it the
gate can make the champion's model anew as it would have been made at an earlier origin, and hold
it against the candidate's on equal terms: same log, same moment, same users.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from scoring.generation import Generation, Manifest, with_unit
from scoring.settings import TrainingSettings
from scoring.training.examples import Examples
from scoring.training.forecasts import score
from scoring.training.trainable import BLENDED, Ask, Made, family

Values = npt.NDArray[np.float64]
Progress = Callable[[str, int, int | None], None]  # stage, done, in all where known


@dataclass(frozen=True, slots=True)
class Recipe:
    """What makes a generation, apart from the log."""

    training: TrainingSettings
    cutoffs: int
    windows: int  # newest mature cut-offs to calibrate on

    def as_json(self) -> dict[str, Any]:
        """For the manifest; `of` reads it back."""
        training = self.training.model_dump(mode="json")
        kept = {"training": training, "cutoffs": self.cutoffs, "windows": self.windows}
        return kept | _members(self.training.family)

    @classmethod
    def of(cls, manifest: Manifest) -> Recipe | None:
        """The recipe of a generation; None where none was recorded, or not one of this version."""
        kept = manifest.recipe
        if not kept:
            return None
        try:
            training = TrainingSettings(**kept["training"])
            if any(kept.get(name) != now for name, now in _members(training.family).items()):
                return None  # a blend of others, which is not made any more
            return cls(training, int(kept["cutoffs"]), int(kept["windows"]))
        except (ValidationError, KeyError, TypeError, ValueError):
            return None

    def same(self, other: Recipe) -> bool:
        """Are they one recipe? Another seed is no other recipe.

        >>> one = Recipe(TrainingSettings(), 12, 3)
        >>> one.same(Recipe(TrainingSettings(seed=7), 12, 3))
        True
        >>> one.same(Recipe(TrainingSettings(width=16), 12, 3))
        False
        """
        mine, theirs = self.as_json(), other.as_json()
        mine["training"].pop("seed")
        theirs["training"].pop("seed")
        return mine == theirs

    def untaught(self) -> Recipe:
        """The same without teachers: what takes most of a fit's time, and is the same in both.

        >>> Recipe(TrainingSettings(teachers=("gbm",)), 12, 3).untaught().training.teachers
        ()
        """
        return replace(self, training=self.training.model_copy(update={"teachers": ()}))


def _members(family: str) -> dict[str, Any]:
    """Of what a blend is the mean; other families say it by their name."""
    return {"members": list(BLENDED)} if family == "blend" else {}


def fit(
    examples: Examples,
    recipe: Recipe,
    *,
    unit: str = "",
    progress: Progress | None = None,
) -> Made:
    """Train on some examples and calibrate on the newest of them; TooLittleData if too few."""
    days = [seconds // 86_400 for seconds in examples.horizons_s]
    ask = Ask(examples, days, recipe.training, recipe.windows, progress)
    made = family(recipe.training.family).make(ask)
    if not unit:
        return made
    return Made(with_unit(made.whole, unit), lambda: with_unit(made.apart(), unit))


def expected(made: Generation, rows: Examples) -> tuple[Values, Values]:
    """(N, H) expected values and P(active) of examples by the served files."""
    got = score(made, rows)  # in parts: a carry may take kilobytes
    return got.expected[:, 0].astype(np.float64), got.p_active[:, 0].astype(np.float64)
