"""A teacher for the served net: what several families say of users whom they were not trained on.

Trees, polynomials, kernels and other nets rank as well as the served one, each by other errors;
their mean ranks better than each. A worker does not run them all: the net learns from the labels
and from their mean. A family may be there with several seeds, as one voice: what the seeds agree
on is what the data says.

A teacher that had seen a row's label would only repeat it. So the users are dealt into folds, by a
hash of the name, and each fold is scored by families fitted to the other folds' users. Labels of
one user overlap between cut-offs: all of his rows lie in one fold.

Source: Hinton, Vinyals & Dean 2015, arXiv:1503.02531; out of fold as in Wolpert 1992, "Stacked
generalization". Shapes: N rows, H horizons.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from scoring.generation import Generation
from scoring.training.examples import Examples
from scoring.training.forecasts import score
from scoring.training.teacher import Teacher

FOLDS = 4
MOST_ROWS = 400_000  # a family is fitted to: beyond, trees cost more than they teach

Fit = Callable[[Examples], Generation]
Told = Callable[[int, int], None]  # fits done, in all
Ints = npt.NDArray[np.int64]


def taught(
    examples: Examples,
    fits: Mapping[str, Fit],
    folds: int = FOLDS,
    seed: int = 0,
    told: Told = lambda done, total: None,
) -> Teacher:
    """The mean of what the families say of each row, fitted without its user."""
    fold = dealt(examples, folds, seed)
    shape = examples.value.shape
    expected, p_active = np.zeros(shape), np.zeros(shape)
    done, total = 0, folds * len(fits)
    for k in range(folds):
        others, own = _some(examples.rows(fold != k), seed), np.flatnonzero(fold == k)
        for fit in fits.values():
            told(done, total)
            said = score(fit(others), examples.rows(own))  # in parts: a carry may take kilobytes
            expected[own] += said.expected[:, 0] / len(fits)
            p_active[own] += said.p_active[:, 0] / len(fits)
            done += 1
    told(total, total)
    return Teacher(expected, p_active)


def dealt(examples: Examples, folds: int, seed: int = 0) -> Ints:
    """(N,) the fold of each row: that of its user."""
    drawn = [zlib.crc32(f"{seed}.{user}".encode()) % folds for user in examples.users]
    return np.array(drawn, np.int64)[examples.user]


def _some(examples: Examples, seed: int) -> Examples:
    """At most about MOST_ROWS rows, of whole users."""
    if len(examples) <= MOST_ROWS:
        return examples
    every = -(-len(examples) // MOST_ROWS)
    return examples.rows(dealt(examples, every, seed + 1) == 0)
