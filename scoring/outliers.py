"""Outliers: values beyond the bounds that training fitted, which a model reads as the bound.

The bounds are the family's and part of what it serves: `CLIP` of scoring.zoo.nets, `Scaling` of
scoring.zoo.two_part, of trees the ends of what training saw, of a blend its members' closest. The
manifest names them in the units of the features (`bounds` of `params`), so that rows of training
and users who are scored are counted by the same rule; counting changes no value. The prior, which
nobody taught, has none.

Shapes: U users or rows, F features that a generation reads. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.wording import counted
from scoring.generation import Manifest
from scoring.interface import Floats

BOUNDS = "bounds"  # among a manifest's params: name of a feature -> lowest and highest value read
# A bound is often a value that many have. What rounding may move it: of its own width in a model's
# arithmetic, and in the manifest, which keeps six digits.
_WIDER, _DIGITS = 1e-4, 1e-5


def bounds(
    names: Sequence[str], low: npt.NDArray[np.floating], high: npt.NDArray[np.floating]
) -> dict[str, dict[str, list[float]]]:
    """For a manifest's params.

    >>> bounds(["orders"], np.array([0.0]), np.array([12.34567891]))
    {'bounds': {'orders': [0.0, 12.3457]}}
    """
    pairs = zip(low.tolist(), high.tolist(), strict=True)
    return {
        BOUNDS: {n: [float(f"{x:.6g}") for x in pair] for n, pair in zip(names, pairs, strict=True)}
    }


def closest(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Of the params of several models, for one of them all: beyond it one of them reads a bound.

    >>> closest([{"bounds": {"orders": [0.0, 9.0]}}, {"bounds": {"orders": [1.0, 12.0]}}, {}])
    {'bounds': {'orders': [1.0, 9.0]}}
    """
    made: dict[str, list[float]] = {}
    for params in found:
        for name, (low, high) in params.get(BOUNDS, {}).items():
            least, most = made.get(name, (low, high))
            made[name] = [max(low, least), min(high, most)]
    return {BOUNDS: made} if made else {}


@dataclass(slots=True)
class Outliers:
    """Counts users by part; make it with `of`."""

    names: tuple[str, ...]  # (E,) columns that have bounds
    at: npt.NDArray[np.intp]  # (E,) where they stand among the features
    low: npt.NDArray[np.float64]  # (E,)
    high: npt.NDArray[np.float64]  # (E,)
    counts: npt.NDArray[np.int64]  # (E,) users beyond
    users: int = 0
    beyond: int = 0  # users with any value beyond

    @classmethod
    def of(cls, manifest: Manifest) -> Outliers | None:
        """By the bounds of a generation; None where it has none."""
        found = manifest.params.get(BOUNDS)
        if not found:
            return None
        place = {name: at for at, name in enumerate(manifest.features)}
        names = tuple(name for name in found if name in place)
        low, high = np.array([found[name] for name in names]).T
        largest = np.maximum(np.abs(low), np.abs(high))
        margin = np.maximum(_WIDER * (high - low), _DIGITS * largest)
        at = np.array([place[name] for name in names], np.intp)
        return cls(names, at, low - margin, high + margin, np.zeros(len(names), np.int64))

    def add(self, features: Floats) -> None:
        """Users by what the generation reads of them, (U, F)."""
        read = features[:, self.at]
        out = (read < self.low) | (read > self.high)
        self.users += len(out)
        self.beyond += int(out.any(axis=1).sum())
        self.counts += out.sum(axis=0)

    def as_json(self) -> dict[str, Any]:
        """`users`, `beyond` (with any such value), `values`, and `columns` that have some."""
        order = np.argsort(-self.counts, kind="stable")
        columns = {self.names[i]: int(self.counts[i]) for i in order.tolist() if self.counts[i]}
        values = int(self.counts.sum())
        return {"users": self.users, "beyond": self.beyond, "values": values, "columns": columns}


def lines(found: dict[str, Any] | None) -> list[str]:
    """The same for people; none where there is nothing to say.

    >>> lines({"users": 4000, "beyond": 12, "values": 15, "columns": {"gross": 9, "orders": 6}})
    ['outliers: 15 values of 12 in 4,000 users, read as the bound of training: gross 9, orders 6']
    """
    if not found or not found["values"]:
        return []
    most = ", ".join(f"{name} {n:,}" for name, n in list(found["columns"].items())[:3])
    return [
        f"outliers: {counted(found['values'], 'value')} of {found['beyond']:,} in"
        f" {counted(found['users'], 'user')},"
        f" read as the bound of training: {most}"
    ]
