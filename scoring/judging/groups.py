"""Users in groups at a cut-off, so that an average does not hide whom it fails.

- `population`: buyers (an order by then), prospects (seen, none yet), all.
- `tenure`: days since the user's first event.
- `evidence`: as in the value document. cold: no positive value event; thin: one or two, or known
  for less than 30 days; enough: more.

Shapes: U users of the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.wording import counted
from scoring.documents import evidence_of
from scoring.judging.history import DAY
from scoring.judging.past import Past

Bools = npt.NDArray[np.bool_]

TENURE_DAYS = (30, 90, 180, 365)
BY = ("population", "tenure", "evidence")


@dataclass(frozen=True, slots=True)
class Group:
    """Some users; none of them is new to the log."""

    by: str
    name: str
    at: Bools  # (U,)


def populations(past: Past) -> dict[str, Bools]:
    """Who may be scored, by name."""
    return {
        "all": past.seen,
        "buyers": past.seen & past.buyers,
        "prospects": past.seen & ~past.buyers,
    }


def people(n: int, population: str) -> str:
    """So many of a population.

    >>> people(1, "buyers"), people(0, "prospects"), people(12, "all")
    ('1 buyer', '0 prospects', '12 users')
    """
    return counted(n, "user" if population == "all" else population.removesuffix("s"))


def groups(past: Past, population: str) -> Iterator[Group]:
    """All groups with a user in them; tenure and evidence part the population."""
    named = populations(past)
    for name, at in named.items():
        yield Group("population", name, at)
    chosen = named[population]
    days = tenure_days(past)
    edges = (0, *TENURE_DAYS)
    for low, high in zip(edges, (*TENURE_DAYS, None), strict=True):
        name = f"{low} days and more" if high is None else f"{low} to {high} days"
        inside = days >= low if high is None else (days >= low) & (days < high)
        yield Group("tenure", name, chosen & inside)
    for name, at in evidence(past).items():
        yield Group("evidence", name, chosen & at)


def tenure_days(past: Past) -> npt.NDArray[np.float64]:
    """(U,) days since the first event; 0 for users not seen."""
    return (past.as_of_ms - _first_ms(past)) / DAY


def evidence(past: Past) -> dict[str, Bools]:
    """(U,) each, how much is known of a user."""
    history = past.history
    orders = np.bincount(history.user[history.value > 0], minlength=len(history.users))
    found = np.array(evidence_of(orders, _first_ms(past), np.array(past.as_of_ms)), "S6")
    return {name: found == name.encode() for name in ("cold", "thin", "enough")}


def _first_ms(past: Past) -> npt.NDArray[np.int64]:
    history = past.history
    first = np.full(len(history.users), past.as_of_ms, np.int64)
    np.minimum.at(first, history.user, history.time_ms)
    return first
