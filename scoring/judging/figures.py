"""Points of charts: what a picture of a model's word shows, without drawing it.

Shapes: N users, B buckets, P points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scoring.judging.metrics import Gain, Values, quantile_buckets

BUCKETS = 10
POINTS = 101  # of a curve: each hundredth of the users


class Buckets(NamedTuple):
    """Users in buckets of equal size along the prediction, lowest first; (B,) each."""

    users: npt.NDArray[np.int64]
    said: Values  # mean predicted
    came: Values  # mean of what came true


def buckets(came: Values, said: Values, count: int = BUCKETS) -> Buckets:
    """Means of the prediction's deciles; equal edges are merged, as in `dmape` and `ece`.

    >>> found = buckets(np.array([0.0, 1.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0, 4.0]), 2)
    >>> found.said.tolist(), found.came.tolist()
    ([1.5, 3.5], [0.5, 5.0])
    """
    bucket = quantile_buckets(said, count)
    users = np.bincount(bucket)
    some = users > 0
    means = (np.bincount(bucket, column)[some] / users[some] for column in (said, came))
    return Buckets(users[some], *means)


def gain(came: Values, by: Values) -> Values:
    """(P,) part of all that came, held by the first 0, 1, … 100 % of users along `by`."""
    kept = Gain(came, by)
    return np.array([kept.top(share) for share in np.linspace(0, 1, POINTS)])


def mean_gain(pairs: Sequence[tuple[Values, Values]]) -> Values:
    """(P,) mean of the gain curves of several cut-offs."""
    out: Values = np.mean([gain(came, by) for came, by in pairs], axis=0)
    return out


def mean_buckets(pairs: Sequence[tuple[Values, Values]], count: int = BUCKETS) -> Buckets:
    """Buckets of several cut-offs, each bucketed by itself: their users together.

    Where a cut-off has fewer buckets (equal edges), its highest stay the highest.
    """
    parts = [buckets(came, said, count) for came, said in pairs]
    size = max(len(part.users) for part in parts)
    users, said, came = np.zeros(size, np.int64), np.zeros(size), np.zeros(size)
    for part in parts:
        at = slice(size - len(part.users), size)
        users[at] += part.users
        said[at] += part.said * part.users
        came[at] += part.came * part.users
    return Buckets(users, said / users, came / users)


def sample(count: int, most: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Rows to draw as dots: all, or `most` of them at random, always the same ones."""
    if count <= most:
        return np.arange(count)
    drawn = np.random.default_rng(seed).choice(count, most, replace=False)
    return np.sort(drawn).astype(np.int64)
