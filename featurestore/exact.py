"""Features, slow and exact: the twin of vector.encode over all events of one user.

No buckets and no float32: windows are counted event by event. `bound` says how far the fast
column may be from it, as the feature table promises; tests hold every column to that.

Times are integer milliseconds, UTC.
"""

from __future__ import annotations

import math

from featurestore.features import (
    DAY_PARTS,
    NEVER_DAYS,
    PRIOR_ORDERS,
    WEEKDAYS,
    WINDOWS_DAYS,
    table,
)
from featurestore.fold_settings import DAY_MS, WEEK_MS, half_lives_ms
from featurestore.settings import FeatureSettings
from featurestore.state import CIRCLE
from featurestore.update import Side

_KINDS = ("browse", "purchase", "interaction")


def exact_features(
    side: Side,
    as_of_ms: int,
    log_start_ms: int | None,
    settings: FeatureSettings,
    *,
    held: bool = False,
) -> dict[str, float]:
    """Value of every feature of a side with at least one event, at or after that event."""
    assert side.first_ms is not None
    assert side.last_ms is not None
    last, days = side.last_ms, 1 / DAY_MS
    gross, refunded = side.gross_micro / 1e6, side.refunded_micro / 1e6
    out = {
        "browses": math.log1p(side.counts[0]),
        "purchases": math.log1p(side.counts[1]),
        "interactions": math.log1p(side.counts[2]),
        "orders": math.log1p(side.orders),
        "refunds": math.log1p(side.refunds),
        "sessions": math.log1p(side.sessions),
        "gross": math.log1p(gross),
        "refunded": math.log1p(refunded),
        "spent": _signed(gross - refunded),
        "refund_share": min(refunded / gross, 2) if gross > 0 else 0,
        "log_mean_order_value": math.log(
            (gross + PRIOR_ORDERS * settings.order_value_prior) / (side.orders + PRIOR_ORDERS)
        ),
        "session_minutes": math.log1p((last - (side.session_ms or last)) / 60_000),
        "session_events": math.log1p(side.session_events),
    }
    never = math.log1p(NEVER_DAYS)
    spans = (
        ("order", side.orders, side.first_order_ms, side.last_order_ms, side.order_gap_ms),
        ("event", sum(side.counts), side.first_ms, last, side.event_gap_ms),
    )
    for what, number, begin, end, gap in spans:
        several = number > 1 and begin is not None and end is not None
        mean = (end - begin) / (number - 1) if several and begin is not None and end else 0
        out[f"{what}_gap"] = math.log1p(gap * days) if several else never
        out[f"mean_{what}_gap"] = math.log1p(mean * days) if several else never
        weight = side.decayed_sum(f"{what}_gaps", 1)
        typical = side.decayed_sum(f"{what}_log_gap", 1)
        out[f"typical_{what}_gap"] = typical / weight if weight > 0 else never
    for group, number in (("category", 8), ("action", 8), ("hours", 28)):
        sums = [side.decayed_sum(f"{group} {i}", 1) for i in range(number)]
        total = sum(sums) or 1
        shares = [s / total for s in sums]
        if group == "hours":
            out |= {f"{part}_share": sum(shares[i::4]) for i, part in enumerate(DAY_PARTS)}
            out |= {f"{d}_share": sum(shares[4 * i : 4 * i + 4]) for i, d in enumerate(WEEKDAYS)}
        else:
            out |= {f"{group}_{i}": share for i, share in enumerate(shares)}

    def since(moment: int | None) -> float:
        if moment is None:
            return math.log1p((as_of_ms - last) * days + NEVER_DAYS)
        return math.log1p((as_of_ms - moment) * days)

    out["since_event"] = since(last)
    out |= {f"since_{kind}": since(side.last_type_ms[k]) for k, kind in enumerate(_KINDS)}
    out["since_order"], out["since_refund"] = since(side.last_order_ms), since(side.last_refund_ms)
    out["tenure"], out["order_tenure"] = since(side.first_ms), since(side.first_order_ms)
    out["log_age"] = since(min(log_start_ms, as_of_ms)) if log_start_ms is not None else 0
    for h, half_life in enumerate(half_lives_ms(settings)):
        left = 2 ** (-(as_of_ms - last) / half_life)
        for kind in _KINDS:
            out[f"decayed_{kind}s_{h + 1}"] = math.log1p(left * side.decayed_sum(kind, h))
            value = left * side.decayed_sum(f"value_{kind}", h)
            out[f"decayed_{kind}_value_{h + 1}"] = _signed(value)
        out[f"decayed_orders_{h + 1}"] = math.log1p(left * side.decayed_sum("orders", h))
        if h == 1:
            out["decayed_sessions"] = math.log1p(left * side.decayed_sum("sessions", h))
    for window in WINDOWS_DAYS:
        tally = side.window(as_of_ms, window)
        out[f"orders_{window}d"] = math.log1p(tally.orders)
        out[f"events_{window}d"] = math.log1p(tally.events)
        out[f"value_{window}d"] = _signed(tally.value_micro / 1e6)
    of_value = [
        moment for moment in (side.last_order_ms, side.last_refund_ms) if moment is not None
    ]
    for h, half_life in enumerate(half_lives_ms(settings)):
        back = 2 ** ((last - max(of_value, default=last)) / half_life)
        out[f"held_orders_{h + 1}"] = math.log1p(back * side.decayed_sum("orders", h))
        value = sum(side.decayed_sum(f"value_{kind}", h) for kind in _KINDS)
        out[f"held_value_{h + 1}"] = _signed(back * value)
    if settings.social:
        # The codes are exact, how many users they stand for is not: features.SOCIAL says how far.
        free = max(CIRCLE - 1 - len(side.circle), 0.5)
        out["degree"] = math.log1p((CIRCLE - 1) * math.log((CIRCLE - 1) / free))
        out["edges"] = math.log1p(side.edges)
        out["since_edge"] = since(side.last_edge_ms)
        for h, half_life in enumerate(half_lives_ms(settings)):
            left = 2 ** (-(as_of_ms - last) / half_life)
            out[f"decayed_edges_{h + 1}"] = math.log1p(left * side.decayed_sum("edges", h))
    return {feature.name: out[feature.name] for feature in table(settings, held=held)}


def bound(name: str, side: Side, as_of_ms: int) -> float:
    """How far a window may be off, before its log: what the bucket holds in which it begins."""
    what, _, window = name.rpartition("_")
    days = int(window.removesuffix("d"))
    span = DAY_MS if days == WINDOWS_DAYS[0] else WEEK_MS
    number = (as_of_ms - days * DAY_MS) // span
    inside = [e for e in side.events if e.time_ms // span == number]
    if what == "orders":
        return sum(e.value_micro > 0 for e in inside)
    return len(inside) if what == "events" else sum(abs(e.major) for e in inside)


def _signed(x: float) -> float:
    return math.copysign(math.log1p(abs(x)), x)
