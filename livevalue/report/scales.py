"""Axes: from values to pixels, and where the ticks stand.

>>> Linear(0, 10).ticks(), Linear(0.62, 0.71).ticks()
([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [0.62, 0.64, 0.66, 0.68, 0.7])
>>> LogOne(2500).ticks()
[0.0, 1.0, 10.0, 100.0, 1000.0]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Scale(Protocol):
    """Values -> 0..1."""

    def at(self, value: float) -> float: ...
    def ticks(self) -> list[float]: ...


@dataclass(frozen=True, slots=True)
class Linear:
    """From low to high, evenly."""

    low: float
    high: float

    @classmethod
    def around(cls, values: list[float], *, zero: bool = False, room: float = 0.08) -> Linear:
        """A little wider than what is shown."""
        known = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
        low, high = min(known), max(known)
        if zero:
            low = min(low, 0.0)
        span = (high - low) or abs(high) or 1.0
        return cls(low if zero and low == 0 else low - room * span, high + room * span)

    def at(self, value: float) -> float:
        """May lie outside 0..1 for what lies outside."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """About five round values."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 10) + 0.0 for i in range(first, last + 1)]


@dataclass(frozen=True, slots=True)
class LogOne:
    """From 0 to high by log(1 + value): money of users, most of whom spend nothing."""

    high: float

    def at(self, value: float) -> float:
        """What is below 0 stands at 0."""
        return math.log1p(max(value, 0.0)) / math.log1p(max(self.high, 1.0))

    def ticks(self) -> list[float]:
        """0 and the powers of ten."""
        out, tick = [0.0], 1.0
        while tick <= max(self.high, 1.0):
            out.append(tick)
            tick *= 10
        return out


def short(value: float) -> str:
    """A tick's label.

    >>> [short(v) for v in (0.0, 0.65, 2.5, 1000.0, 25_000.0, 3e6)]
    ['0', '0.65', '2.5', '1k', '25k', '3M']
    """
    for size, sign in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{sign}"
    return f"{value:g}"
