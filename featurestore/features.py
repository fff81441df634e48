"""The feature table: what a model sees of a user at a query time, one row each.

`FEATURES` names the columns of vector.encode in order: first those that do not depend on the
query time, then those that move with it. Behind them stand HELD for whoever asks for them, and
SOCIAL where the setting `social` is on; `table` gives what is asked for. Magnitudes are
log1p-transformed. `error` says how far a column may be from an exact computation over all events;
tests hold each to it. Everywhere, float32 arithmetic adds a relative error of about 1e-6.

"Never" is written as ten years before the user's last event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from featurestore.settings import FeatureSettings

NEVER_DAYS: Final = 3650.0
WINDOWS_DAYS: Final = (7, 30, 90)
DAY_PARTS: Final = ("night", "morning", "afternoon", "evening")  # six hours each, UTC
WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
# Weight of the prior in the shrunken mean order value, in orders.
PRIOR_ORDERS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Feature:
    """One column."""

    name: str
    unit: str  # of what is transformed, and how
    window: str  # what part of the past counts: all, a window, or a half-life
    meaning: str
    error: str = "none"
    moves: bool = False  # depends on the query time


_COUNT, _MONEY, _DAYS = "log1p count", "signed log1p major units", "log1p days"
_MIDDLE = "second half-life"
_DECAY = "none; rounding of sums, 1e-9 relative"
_SHARE = "float32 sums, 1e-4 of the share"
_HASHED = "codes share 8 buckets"


def _static() -> list[Feature]:
    table = [
        Feature("browses", _COUNT, "all", "browse events"),
        Feature("purchases", _COUNT, "all", "purchase events, refunds too"),
        Feature("interactions", _COUNT, "all", "interaction events"),
        Feature("orders", _COUNT, "all", "events of positive value"),
        Feature("refunds", _COUNT, "all", "events of negative value"),
        Feature("sessions", _COUNT, "all", "sessions", "events behind the edge start none"),
        Feature("gross", _MONEY, "all", "sum of positive values"),
        Feature("refunded", _MONEY, "all", "sum of negative values, without the sign"),
        Feature("spent", _MONEY, "all", "gross - refunded"),
        Feature("refund_share", "share", "all", "refunded / gross, 0 without orders, at most 2"),
        Feature(
            "log_mean_order_value",
            "log major units",
            "all",
            f"log((gross + {PRIOR_ORDERS:g} prior) / (orders + {PRIOR_ORDERS:g})), the shrunken"
            " mean order value; prior: setting order_value_prior",
        ),
    ]
    for what, plural in (("order", "orders"), ("event", "events")):
        early = f"{plural} behind the edge open no gap"
        table += [
            Feature(f"{what}_gap", _DAYS, "all", f"between the last two {plural}; never", early),
            Feature(f"mean_{what}_gap", _DAYS, "all", f"mean gap between {plural}; never"),
            Feature(
                f"typical_{what}_gap",
                "mean of log1p days",
                _MIDDLE,
                f"decayed mean of the log gap between {plural}; never",
                early,
            ),
        ]
    table += [
        Feature("session_minutes", "log1p minutes", "last session", "from its first to last event"),
        Feature("session_events", _COUNT, "last session", "events in it"),
    ]
    for group in ("category", "action"):
        table += [
            Feature(f"{group}_{i}", "share", _MIDDLE, f"of activity with a {group}", _HASHED)
            for i in range(8)
        ]
    table += [
        Feature(f"{part}_share", "share", _MIDDLE, f"of events in the {part}, UTC", _SHARE)
        for part in DAY_PARTS
    ]
    table += [
        Feature(f"{day}_share", "share", _MIDDLE, f"of events on a {day}, UTC", _SHARE)
        for day in WEEKDAYS
    ]
    return table


def _moving() -> list[Feature]:
    table = [
        Feature(f"since_{what}", _DAYS, "all", f"since the last {what}; never", moves=True)
        for what in ("event", "browse", "purchase", "interaction", "order", "refund")
    ]
    table += [
        Feature("tenure", _DAYS, "all", "since the first event", moves=True),
        Feature("order_tenure", _DAYS, "all", "since the first order; never", moves=True),
        Feature("log_age", _DAYS, "all", "since the log began; 0 if unknown", moves=True),
    ]
    for h, ordinal in enumerate(("first", "second", "third")):
        window = f"{ordinal} half-life"
        for what in ("browses", "purchases", "interactions", "orders"):
            name = f"decayed_{what}_{h + 1}"
            table.append(Feature(name, _COUNT, window, f"decayed {what}", _DECAY, moves=True))
        for what in ("browse", "purchase", "interaction"):
            name, meaning = f"decayed_{what}_value_{h + 1}", f"decayed value of {what} events"
            table.append(Feature(name, _MONEY, window, meaning, _DECAY, moves=True))
        if h == 1:
            name, meaning = "decayed_sessions", "decayed sessions"
            table.append(Feature(name, _COUNT, window, meaning, _DECAY, moves=True))
    for days in WINDOWS_DAYS:
        edge = "day" if days == 7 else "week"
        error = f"at most what the {edge} (UTC) holds in which the window begins"
        for what, unit in (("orders", _COUNT), ("events", _COUNT), ("value", _MONEY)):
            name, meaning = f"{what}_{days}d", f"{what} of the last {days} days"
            table.append(Feature(name, unit, f"{days} days", meaning, error, moves=True))
    return table


_STATIC, _MOVING = _static(), _moving()
STATIC: Final = len(_STATIC)  # columns that do not depend on the query time; they come first
FEATURES: Final[tuple[Feature, ...]] = (*_STATIC, *_MOVING)
WINDOWS: Final = tuple(f.name for f in _MOVING[-3 * len(WINDOWS_DAYS) :])


def _held() -> list[Feature]:
    table = []
    for h, ordinal in enumerate(("first", "second", "third")):
        window = f"{ordinal} half-life"
        for what, unit, meaning in (
            ("orders", _COUNT, "decayed orders"),
            ("value", _MONEY, "decayed value"),
        ):
            meaning += " as of the last event of value"
            table.append(Feature(f"held_{what}_{h + 1}", unit, window, meaning, _DECAY))
    return table


# How lively a user was when he last was: unlike what a window holds, silence does not move it, so
# that the value of a model that reads it does not bend where orders leave a window. And unlike a
# window that ends at the last event, no event without value moves it.
HELD: Final[tuple[Feature, ...]] = tuple(_held())

# An edge is an interaction that names another user (target_user_id), by whatever action.
_COUNTED = (
    "linear counting in 255 buckets (Whang et al. 1990): 6 % (one sigma) up to 300, 11 % at 1,000; "
    "at most about 1,600"
)


def _social() -> list[Feature]:
    table = [
        Feature("degree", _COUNT, "all", "different users addressed", _COUNTED),
        Feature("edges", _COUNT, "all", "interactions that address another user"),
        Feature("since_edge", _DAYS, "all", "since the last of them; never", moves=True),
    ]
    for h, ordinal in enumerate(("first", "second", "third")):
        name, window = f"decayed_edges_{h + 1}", f"{ordinal} half-life"
        table.append(Feature(name, _COUNT, window, "decayed edges", _DECAY, moves=True))
    return table


SOCIAL: Final[tuple[Feature, ...]] = tuple(_social())


def table(settings: FeatureSettings, *, held: bool = False) -> tuple[Feature, ...]:
    """The columns of vector.encode under these settings, in order.

    >>> len(table(FeatureSettings(social=True))) - len(table(FeatureSettings()))
    6
    """
    return (*FEATURES, *(HELD if held else ()), *(SOCIAL if settings.social else ()))
