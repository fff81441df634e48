"""What came of users who would have been targeted: the first share by value, against the rest.

- Conversion: the share of users with an order in the window.
- Click-through: of the pages that the group's users viewed in the window, the share after which
  the very next thing that the user did, within `PATIENCE_MS`, was to act on it: an interaction (a
  cart, a like, a share, …) or a purchase. The log of a shop holds no impressions, so a viewed page
  (`browse`) stands for what was shown. Only where the log holds browses and interactions.

A window is history: nobody was in fact targeted by these values. The figures say whom targeting
would have reached, not what it would have caused.

Shapes: U users of the log, E events, N users of the population.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.columns import Kind
from scoring.judging.history import History
from scoring.judging.metrics import number
from scoring.training.forecasts import Forecast

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

PATIENCE_MS = 30 * 60_000  # after which a visit counts as over, as web analytics have it


@dataclass(frozen=True, slots=True)
class Clicks:
    """Of each user in a window, or why there are none to count."""

    viewed: Ints  # (U,)
    clicked: Ints  # (U,)
    reason: str | None = None

    @classmethod
    def of(cls, history: History, start_ms: int, end_ms: int) -> Clicks:
        """Count the views of [start, end) and those that were acted on within it."""
        n = len(history.users)
        none = np.zeros(n, np.int64)
        if not len(history.kind):
            return cls(none, none, "the types of the events are not known")
        inside = (history.time_ms >= start_ms) & (history.time_ms < end_ms)
        kind = history.kind[inside]
        for wanted, name in ((Kind.BROWSE, "browse"), (Kind.INTERACTION, "interaction")):
            if not (kind == wanted).any():
                return cls(none, none, f"the log holds no {name} in the window")
        user, time_ms = history.user[inside], history.time_ms[inside]
        order = np.lexsort((kind, time_ms, user))  # of one instant, the view comes first
        user, time_ms, kind = user[order], time_ms[order], kind[order]
        view = kind == Kind.BROWSE
        follows = np.zeros(len(user), bool)
        follows[:-1] = (
            (user[1:] == user[:-1]) & ~view[1:] & (time_ms[1:] - time_ms[:-1] <= PATIENCE_MS)
        )
        return cls(
            np.bincount(user[view], minlength=n), np.bincount(user[view & follows], minlength=n)
        )


def targeted(said: Forecast, share: float) -> Bools:
    """(N,) the first `share` of users by expected value; ties by P(active), then by row.

    >>> targeted(Forecast(np.array([3.0, 9.0, 1.0, 2.0])), 0.5).tolist()
    [True, True, False, False]
    """
    n = len(said.expected)
    order = np.lexsort((np.arange(n), -said.activity, -said.expected))
    out = np.zeros(n, bool)
    out[order[: max(1, round(share * n))]] = True
    return out


def targeting(
    said: Forecast, active: Bools, share: float, clicks: Clicks, rows: Ints
) -> dict[str, Any]:
    """`targeting` of a run; rows: (N,) rows of the population among all users."""
    first = targeted(said, share)
    groups = {"targeted": first, "untargeted": ~first}
    return {
        "share": share,
        **{name: _group(at, active, clicks, rows) for name, at in groups.items()},
        "click_through_reason": clicks.reason,
    }


def _group(at: Bools, active: Bools, clicks: Clicks, rows: Ints) -> dict[str, Any]:
    users, views = int(at.sum()), int(clicks.viewed[rows[at]].sum())
    acted = int(clicks.clicked[rows[at]].sum())
    return {
        "users": users,
        "conversion": number(float(active[at].mean())) if users else None,
        "views": views if clicks.reason is None else None,
        "click_through": acted / views if views else None,
    }
