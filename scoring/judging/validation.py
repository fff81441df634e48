"""An earlier window to choose on: users at a moment, and what came of them, all known by now.

The newest cut-off whose labels were whole at the moment that is judged. What is chosen there (the
threshold of a yes-or-no task) has seen nothing of the window that is judged.

Shapes: U users of the log, N of the population.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.wording import counted
from scoring.errors import ScoringError
from scoring.judging.cutoffs import stamp
from scoring.judging.groups import populations
from scoring.judging.history import DAY
from scoring.judging.past import Past
from scoring.judging.scored import Outcome
from scoring.judging.thresholds import Task, Threshold, choose
from scoring.training.forecasts import Forecast

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Validation:
    """One horizon's window; `came` is of all U users."""

    past: Past
    came: Outcome
    population: Bools  # (U,)

    @classmethod
    def before(cls, past: Past, days: int, population: str) -> Validation | str:
        """The newest one before a cut-off, or why there is none."""
        history = past.history
        at = past.as_of_ms - days * DAY - history.delay_ms(past.as_of_ms)
        then = Past.of(history, at, past.net_by, past.cutoffs_ms)
        chosen = populations(then)[population]
        if not chosen.any():
            whom = population.replace("all", "users")
            return f"no {whom} were known {counted(days, 'day')} before {stamp(past.as_of_ms)}"
        window = history.window(at, at + days * DAY, past.net_by)
        return cls(then, Outcome(window.value, window.active, window.net), chosen)

    def threshold(
        self, task: Task, forecast: Callable[[], Forecast], held_out: Bools | None = None
    ) -> Threshold:
        """The best one by what a model says of U users; held_out: (U,) whom it did not learn from.

        What a model cannot be fitted to at that moment has no threshold.
        """
        at = self.past.as_of_ms
        users = self.population if held_out is None else self.population & held_out
        rows = np.flatnonzero(users)
        came = self.came.rows(rows)
        truth = task.truth(came.value, came.active)
        try:
            said = forecast()
        except ScoringError as error:
            return Threshold(None, str(error), at)
        found = choose(truth, task.score(said.rows(rows)))
        reason = "nobody of the validation window did it" if found is None else None
        return Threshold(found, reason, at, len(rows), int(truth.sum()), held_out is not None)
