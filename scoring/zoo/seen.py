"""Which columns an event type can move: those stay silent until a model has seen the type.

A model that was trained on orders alone has nothing to say about browsing, but a browse event
would still move "since the last event", sessions, shares of the hours and more, all of which
mean orders to that model. So columns that an unseen type can move are encoded as 0, in training
and when served, and its tokens step no carry: a topic that the model never saw moves no value.
A test folds such events and looks at which columns move.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from featurestore.columns import Kind
from featurestore.features import FEATURES, SOCIAL, WINDOWS
from scoring.interests import INTERESTS

TYPES: tuple[str, ...] = tuple(kind.name.lower() for kind in Kind)
# Moved by an event of any type.
MIXED: tuple[str, ...] = (
    "sessions", "event_gap", "mean_event_gap", "typical_event_gap", "session_minutes",
    "session_events", "category_", "action_", "night_share", "morning_share", "afternoon_share",
    "evening_share", "monday_share", "tuesday_share", "wednesday_share", "thursday_share",
    "friday_share", "saturday_share", "sunday_share", "since_event", "tenure", "decayed_sessions",
    "events_", "interest_",
)  # fmt: skip

# The log's age names the cut-off, so a model learns past seasons by it and is asked beyond all it
# saw ever after. Without: Online Retail 90 d nGini .779 for .772 and bias .87 for .69 (means of
# three seeds of the net), CDNOW 13 weeks unchanged at .688.
DRIFTING: frozenset[str] = frozenset(["log_age"])

# A net that reads what lies in a window bends in silence wherever orders leave it, and straight
# lines between a dozen knots cannot follow: up to 17 % of the start off on Online Retail. The nets
# read HELD in their place: docs/adr/0010-nets-read-no-windows.md says what it costs and brings.
# "Never" counts from the last event of any type: of most users `since_refund` says just that, and
# an event of an unseen type would move it.
NOT_FOR_NETS: frozenset[str] = frozenset((*WINDOWS, "since_refund"))


def moved_by(types: Collection[str]) -> frozenset[str]:
    """Names of the feature columns that events of these types move, value rules apart.

    >>> "since_browse" in moved_by(["browse"]), "since_order" in moved_by(["browse"])
    (True, False)
    >>> "degree" in moved_by(["interaction"]), "interest_0" in moved_by(["browse"])
    (True, True)
    >>> sorted(moved_by([]))
    []
    """
    prefixes = [
        prefix
        for name in types
        for prefix in (f"{name}s", f"since_{name}", f"decayed_{name}", *MIXED)
    ]
    edges = {feature.name for feature in SOCIAL} if "interaction" in types else set()
    return frozenset(edges) | frozenset(
        feature.name
        for feature in (*FEATURES, *INTERESTS)
        if any(
            feature.name.startswith(p) if p.endswith("_") or p.startswith("decayed") else
            feature.name == p
            for p in prefixes
        )
    )  # fmt: skip


def tokens_moved_by(types: Iterable[str]) -> frozenset[str]:
    """Names of the token columns of *other* events that steps of these types move.

    Browsing steps no carry unless the value table gives it value, which moves everything anyway.
    Without the gap the net loses little: its features know the gaps between orders (CDNOW, 13
    weeks: nGini .688 with, .687 without).

    >>> sorted(tokens_moved_by(["browse", "interaction"]))
    ['first', 'gap']
    """
    return frozenset(("gap", "first")) if {"purchase", "interaction"} & set(types) else frozenset()


def unseen(seen_types: Iterable[str]) -> tuple[str, ...]:
    """The types that are not among `seen_types`.

    >>> unseen(["purchase"])
    ('browse', 'interaction')
    """
    seen = set(seen_types)
    return tuple(name for name in TYPES if name not in seen)
