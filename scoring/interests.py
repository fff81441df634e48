"""Interests: the few directions in which users' words differ most, learned with a generation.

The fold keeps decayed words of a user's events, hashed into 64 buckets (features.interests, see
events.word_codes): the hashing trick, as HashingVectorizer does it. A generation carries WIDTH
directions of that space, found in training by a truncated singular value decomposition of the
users' rows (latent semantic analysis, Deerwester et al. 1990), and the scorer projects the live
words onto them: one product of (U, 64) with (64, WIDTH). A word that training never saw falls into
a bucket all the same.

The decomposition is that of scikit-learn's TruncatedSVD, held equal by a test; of 64 columns it is
the eigenvectors of a 64 x 64 matrix, exact, and needs no library.

Shapes: N rows, U users, W = events.WORDS buckets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from safetensors.numpy import save

from featurestore.events import WORDS
from featurestore.features import Feature
from scoring.errors import GenerationError
from scoring.interface import Floats
from scoring.serving import weights

FILE: Final = "interests.safetensors"
WIDTH: Final = 8
INTERESTS: Final[tuple[Feature, ...]] = tuple(
    Feature(
        f"interest_{i}",
        "cosine",
        "second half-life",
        f"user's words along direction {i} of the generation, the strongest first",
        f"words share {WORDS} buckets",
    )
    for i in range(WIDTH)
)
INTEREST_NAMES: Final = tuple(feature.name for feature in INTERESTS)


@dataclass(frozen=True, slots=True)
class Directions:
    """Directions of words, each of length 1."""

    matrix: Floats  # (W, WIDTH)

    @classmethod
    def of(cls, words: Floats) -> Directions:
        """Fitted to rows of words (N, W); what fewer rows cannot tell is 0."""
        wide = words.astype(np.float64)
        values, vectors = np.linalg.eigh(wide.T @ wide)
        order = np.argsort(-values)[:WIDTH]
        matrix = vectors[:, order] * (values[order] > 1e-9 * max(float(values.max()), 1e-30))
        # A direction has no sign of its own: its largest part is made positive.
        largest = np.abs(matrix).argmax(axis=0)
        sign = np.where(matrix[largest, np.arange(matrix.shape[1])] < 0, -1.0, 1.0)
        return cls(np.ascontiguousarray(matrix * sign, np.float32))

    @classmethod
    def load(cls, data: bytes) -> Directions:
        """From the bytes of `dump`; GenerationError where they are not."""
        matrix = weights(data).get("directions")
        if matrix is None or matrix.shape != (WORDS, WIDTH):
            raise GenerationError(f"{FILE} of the generation is damaged: publish it again")
        return cls(matrix)

    def dump(self) -> bytes:
        """As a file of the generation."""
        return save({"directions": self.matrix})

    def __call__(self, words: Floats) -> Floats:
        """(U, W) -> (U, WIDTH)."""
        out: Floats = words @ self.matrix
        return out
