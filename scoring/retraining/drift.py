"""Drift: are the users who are scored now still like those that a generation was trained on?

At training the manifest takes, at the newest cut-off, the deciles of each column that the
generation reads (scoring.inputs: the fold's features, what is held, edges, interests, neighbours)
and of each horizon's prediction (scoring.generation.Reference). Later the live users are counted
into the same bins, and the population stability index says how far the shares have moved:

    PSI = sum over bins of (now - then) x ln(now / then)

It is the symmetric Kullback-Leibler divergence of the two. Bands as in credit scoring, where it
comes from (Siddiqi, Credit Risk Scorecards, 2006): below .1 stable, up to .25 watch, beyond
drifted. Of one population it is about (bins - 1) x (1/N + 1/M) by chance, and a multiple of a
chi-square (Yurdakul, Statistical Properties of Population Stability Index, 2018); so from 200
users on each side no column of an undrifted population comes near .25.

What is compared: users with an event within the longest horizon, since all who ever came only
grow older and more; and columns that the generation was trained on, without totals and ages, which
rise with the calendar however steady the business is. What is known of neighbours is as old as the
generation's table, and whom that does not know has 0: a table that has grown old shows here, too.
A generation of an earlier version kept the fold's features alone; of it those are compared.

Shapes: U users, F columns that the generation reads, H horizons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from scoring.generation import Bins, Generation, Manifest, Reference, build
from scoring.inputs import FEATURE_NAMES, of_rows
from scoring.retraining.settings import DRIFTED
from scoring.training.examples import Examples

BINS = 10
LEAST_SEEN = 200
STABLE = 0.1
DAY_S = 86_400
# Ages, and totals over all time.
GROWING = frozenset(
    (
        *("tenure", "order_tenure", "log_age"),
        *("browses", "purchases", "interactions", "orders", "refunds", "sessions"),
        *("gross", "refunded", "spent"),
        *("degree", "edges", "neighbours", "addressed_by"),
    )
)

Band = Literal["stable", "watch", "drifted"]
Values = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


def band(psi: float, limit: float = DRIFTED) -> Band:
    """The usual word for an index; `drifted` above `limit`.

    >>> band(0.02), band(0.1), band(0.3), band(0.3, 0.5), band(0.07, 0.05)
    ('stable', 'watch', 'drifted', 'watch', 'drifted')
    """
    return "drifted" if psi > limit else "stable" if psi < STABLE else "watch"


def read_by(manifest: Manifest) -> tuple[str, ...]:
    """(F,) names of the columns that a generation reads, in their order.

    >>> read_by(Manifest(family="prior", horizons_s=(1,), features=("orders", "degree")))
    ('orders', 'degree')
    """
    return manifest.features or FEATURE_NAMES


def watched(manifest: Manifest) -> tuple[str, ...]:
    """Those of them that are compared."""
    trained = set(manifest.trained_features)
    return tuple(name for name in read_by(manifest) if name in trained - GROWING)


def seen_within(features: Values, names: Sequence[str], seconds: int) -> Bools:
    """(U,) users with an event in the last `seconds`, by columns (U, F) of these names."""
    since = features[:, names.index("since_event")]
    within: Bools = since <= np.log1p(seconds / DAY_S) + 1e-6
    return within


def bins(values: Values, most: int = BINS) -> Bins:
    """Bins of about equal share. Edges lie between values that occur, so that rounding moves none.

    >>> bins(np.array([0.0, 0.0, 0.0, 5.0]))
    Bins(edges=(2.5,), shares=(0.75, 0.25))
    """
    found = np.unique(values.astype(np.float64))
    wanted = np.quantile(values, np.linspace(0, 1, most + 1)[1:-1])
    at = np.searchsorted(found, wanted, side="right") - 1
    at = np.unique(at[at + 1 < len(found)])
    middle = (found[at] + found[at + 1]) / 2
    edges = np.unique([float(f"{edge:.5g}") for edge in middle])
    counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
    shares = np.round(counts / len(values), 4)
    return Bins(edges=tuple(edges.tolist()), shares=tuple(shares.tolist()))


def psi(then: Bins, users: int, counts: npt.NDArray[np.integer]) -> float:
    """How far `counts` of users in the bins are from `then`, the shares of `users`.

    An empty bin counts as half a user, so that few users make no large index.

    >>> then = Bins(edges=(1.0,), shares=(0.5, 0.5))
    >>> psi(then, 1000, np.array([50, 50])), round(psi(then, 1000, np.array([80, 20])), 3)
    (0.0, 0.416)
    """
    total = int(counts.sum())
    now = np.maximum(counts, 0.5) / total
    was = np.maximum(np.array(then.shares), 0.5 / users)
    return float(np.sum((now - was) * np.log(now / was)))


def with_reference(made: Generation, rows: Examples, expected: Values) -> Generation:
    """The generation with its training population; `rows` of one cut-off, `expected` (N, H).

    Unchanged where too few users were seen lately for anything to be compared.
    """
    longest = max(made.manifest.horizons_s)
    recent = seen_within(rows.features, FEATURE_NAMES, longest)
    if int(recent.sum()) < LEAST_SEEN:
        return made
    names, read, said = read_by(made.manifest), of_rows(made, rows.rows(recent)), expected[recent]
    columns = {name: bins(read[:, names.index(name)]) for name in watched(made.manifest)}
    for h, name in enumerate(predictions(made.manifest.horizons_s)):
        columns[name] = bins(said[:, h])
    reference = Reference(
        as_of_ms=int(rows.cutoffs_ms[rows.window[0]]),
        seen_within_s=longest,
        users=int(recent.sum()),
        columns=columns,
    )
    files = {name: made.files[name] for name in made.manifest.sha256}
    return build(made.manifest.model_copy(update={"reference": reference}), files)


def predictions(horizons_s: Sequence[int]) -> list[str]:
    """Names of the columns of predictions.

    >>> predictions([7 * 86_400])
    ['d7.expected']
    """
    return [f"d{seconds // DAY_S}.expected" for seconds in horizons_s]


@dataclass(slots=True)
class Tally:
    """Counts live users into the bins of a reference, page by page."""

    reference: Reference
    horizons_s: tuple[int, ...]
    names: tuple[str, ...]  # (F,) of the columns that are counted: `read_by`
    users: int = 0  # seen lately: those who are counted
    known: int = 0
    _counts: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)

    def add(self, features: Values, expected: Values) -> None:
        """Users by what is read of them (U, F) and predictions (U, H) of now."""
        recent = seen_within(features, self.names, self.reference.seen_within_s)
        self.known += len(features)
        self.users += int(recent.sum())
        features, expected = features[recent], expected[recent]
        said = {name: expected[:, h] for h, name in enumerate(predictions(self.horizons_s))}
        for name, then in self.reference.columns.items():
            values = said[name] if name in said else features[:, self.names.index(name)]
            edges = np.array(then.edges)
            found = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
            self._counts[name] = self._counts.get(name, 0) + found

    def psi(self) -> dict[str, float]:
        """Index by column, largest first; empty where too few users were seen to say."""
        if self.users < LEAST_SEEN:
            return {}
        found = {
            name: psi(then, self.reference.users, self._counts[name])
            for name, then in self.reference.columns.items()
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))
