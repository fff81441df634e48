"""What a generation knows of users' neighbours: a table that retrain makes and the scorer joins.

Two users are neighbours if one has addressed the other (an edge, see featurestore.features). What
they are worth lies in other partitions, and reading it while scoring would make a value depend on
how far those were read (law 4). So `scoring.training.social_graph` computes it where the whole log
is read, and the generation carries it: 64-bit hash of a user's name -> NEAR. Whom the table does
not know gets 0, and so does who was erased after it was made. A generation is part of a store's
fingerprint, so a replay joins the same rows.

Shapes: U users asked for, T users of the table, G columns of NEAR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from featurestore.features import Feature
from scoring.errors import GenerationError
from scoring.interface import Floats
from scoring.serving import weights

FILE: Final = "neighbours.safetensors"
_WINDOW = "second half-life, as of the table"
NEAR: Final[tuple[Feature, ...]] = (
    Feature("near_value", "signed log1p major units", _WINDOW, "decayed value of neighbours"),
    Feature("near_orders", "log1p count", _WINDOW, "decayed orders of neighbours"),
    Feature("near_activity", "log1p count", _WINDOW, "decayed events of neighbours"),
    Feature("neighbours", "log1p count", "all", "users on the other side of an edge"),
    Feature("addressed_by", "log1p count", "all", "users who have addressed this one"),
)
NEAR_NAMES: Final = tuple(feature.name for feature in NEAR)

Keys = npt.NDArray[np.uint64]


def keys(users: Sequence[str]) -> Keys:
    """(U,) hashes of users' names. Stored: fixed.

    >>> keys(["ada"])[0] == keys(["bo", "ada"])[1]
    np.True_
    """
    hashes = b"".join([blake2b(user.encode(), digest_size=8).digest() for user in users])
    return np.frombuffer(hashes, "<u8")


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of NEAR by user, as of the clock of the log that they were made of."""

    keys: Keys  # (T,) ascending
    near: Floats  # (T, G)
    as_of_ms: int

    @classmethod
    def of(cls, users: Sequence[str], near: Floats, as_of_ms: int) -> Table:
        """Of these users (T,); those without a neighbour are left out, as 0 is what they get."""
        some = np.flatnonzero(near.any(axis=1))
        hashed = keys([users[row] for row in some.tolist()])
        order = np.argsort(hashed)
        return cls(hashed[order], near[some][order], as_of_ms)

    @classmethod
    def load(cls, data: bytes) -> Table:
        """From the bytes of `dump`; GenerationError where they are not."""
        arrays = weights(data)
        try:
            made = cls(arrays["keys"], arrays["near"], int(arrays["as_of_ms"][0]))
        except (KeyError, IndexError) as error:
            raise GenerationError(
                f"{FILE} of the generation lacks {error}: publish it again"
            ) from error
        if made.near.shape != (len(made.keys), len(NEAR)) or (np.diff(made.keys) == 0).any():
            raise GenerationError(f"{FILE} of the generation is damaged: publish it again")
        return made

    def dump(self) -> bytes:
        """As a file of the generation."""
        as_of = np.array([self.as_of_ms], np.int64)
        return save({"keys": self.keys, "near": self.near, "as_of_ms": as_of})

    def join(self, users: Sequence[str], erased_ms: npt.NDArray[np.int64]) -> Floats:
        """(U, G) what the table knows of users; `erased_ms` (U,) up to when they are forgotten."""
        out = np.zeros((len(users), len(NEAR)), np.float32)
        if not len(self.keys):
            return out
        hashed = keys(users)
        at = np.minimum(np.searchsorted(self.keys, hashed), len(self.keys) - 1)
        known = (self.keys[at] == hashed) & (erased_ms <= self.as_of_ms)
        out[known] = self.near[at[known]]
        return out
