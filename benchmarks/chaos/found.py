"""What an audit found, in counts: lost, twice, missing, wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_SHOWN = 12


@dataclass
class Audit:
    """What was found; all zero where the protocol holds, but for the first five."""

    records: int = 0  # in the log
    events: int = 0  # that count: folded, by the twin
    users: int = 0  # with at least one of them
    erased: int = 0  # users who were erased at least once
    letters: int = 0  # that are due
    lost: int = 0
    applied_twice: int = 0
    users_wrong: int = 0
    strangers: int = 0
    outputs_missing: int = 0
    outputs_twice: int = 0
    backwards: int = 0
    letters_missing: int = 0
    letters_twice: int = 0
    letters_wrong: int = 0
    examples: list[Any] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not any(self.faults().values())

    def faults(self) -> dict[str, int]:
        """Counts of everything that must be zero."""
        return {
            name: getattr(self, name)
            for name in (
                "lost",
                "applied_twice",
                "outputs_missing",
                "outputs_twice",
                "letters_missing",
                "letters_twice",
                "letters_wrong",
                "users_wrong",
                "strangers",
                "backwards",
            )
        }

    def show(self, *example: Any) -> None:
        """Keep the first few of what is wrong."""
        if len(self.examples) < _SHOWN:
            self.examples.append(example)
