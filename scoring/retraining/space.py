"""The training settings that a search tries: each with its choices, or its range."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

Choice = int | float | str | None


@dataclass(frozen=True, slots=True)
class Dimension:
    """One setting that is searched: some choices, or a range, even in the logarithm if `log`."""

    name: str
    choices: tuple[Choice, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    def holding(self, value: Choice) -> Dimension:
        """Widened so that the setting in force can be tried."""
        if self.choices:
            return self if value in self.choices else replace(self, choices=(*self.choices, value))
        assert isinstance(value, int | float)
        low, high = min(self.low, value), max(self.high, value)
        return replace(self, low=low, high=high, log=self.log and low > 0)

    def suggest(self, trial: optuna.Trial) -> Choice:
        """A value for one trial."""
        if self.choices:
            chosen: Choice = trial.suggest_categorical(self.name, self.choices)
            return chosen
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


SPACE = (
    Dimension("width", choices=(16, 32, 48, 64)),
    Dimension("epochs", choices=(None, 8, 16, 32, 64)),
    Dimension("users_per_batch", choices=(64, 128, 256, 512)),
    Dimension("rate", low=2e-4, high=1e-2, log=True),
    Dimension("decay", low=1e-4, high=0.3, log=True),
    Dimension("dropout", low=0.0, high=0.5),
    # The augmentation, as much as docs/accuracy.md tried: none of it helps there, but logs differ.
    Dimension("event_dropout", choices=(0.0, 0.1, 0.3)),
    Dimension("time_jitter_days", choices=(0.0, 2.0)),
    Dimension("cutoff_dropout", choices=(0.0, 0.5)),
)
