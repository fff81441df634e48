"""The steps of a batch, user by user: what every family with a carry does before its own part.

Shapes: M steps of all users as they came, R runs (users who have a step), T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scoring.generation import Manifest
from scoring.interface import Floats
from scoring.zoo.seen import unseen

Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Runs:
    """Steps sorted by user, each user's own order kept."""

    tokens: Floats  # (M, T)
    users: npt.NDArray[np.int32]  # (R,) row of each run's user
    first: Ints  # (R,) index of its first step
    last: Ints  # (R,) and of its last
    rank: Ints  # (M,) steps of the same user before it

    @classmethod
    def of(cls, rows: npt.NDArray[np.int32], tokens: Floats) -> Runs:
        """`rows` (M,) says whose step each is; M > 0.

        >>> runs = Runs.of(np.array([4, 2, 4], np.int32), np.zeros((3, 1), np.float32))
        >>> runs.users.tolist(), runs.rank.tolist(), runs.last.tolist()
        ([2, 4], [0, 0, 1], [0, 2])
        """
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        first = np.flatnonzero(np.concatenate(([True], rows[1:] != rows[:-1])))
        last = np.append(first[1:], len(rows)) - 1
        rank = np.arange(len(rows)) - np.repeat(first, last - first + 1)
        return cls(tokens[order], rows[first], first, last, rank)


class Known:
    """Passes over steps of a type that was not seen in training."""

    def __init__(self, manifest: Manifest) -> None:
        # columns of the token that tell the types seen; None where all were
        self._seen: list[int] | None = None
        if unseen(manifest.seen_types) and manifest.tokens:
            self._seen = [manifest.tokens.index(name) for name in manifest.seen_types]

    def __call__(
        self, rows: npt.NDArray[np.int32], tokens: Floats
    ) -> tuple[npt.NDArray[np.int32], Floats]:
        """The steps that count."""
        if self._seen is not None:
            known = tokens[:, self._seen].any(axis=1)
            if not known.all():
                return rows[known], tokens[known]
        return rows, tokens
