"""From sides to the numbers that a model sees, at any query time at or after the last event.

`encode` is called with ten or so times of future silence per user, so what does not depend on
the time is computed once and copied. Columns and their errors: features.FEATURES. Windows are
interpolated in cumulated buckets of days and weeks, so that only the bucket in which a window
begins is approximate.

Shapes: U users, K query times, F features (features.table of the settings). float32; times are
integer milliseconds, UTC.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featurestore.columns import NO_TIME
from featurestore.features import (
    FEATURES,
    HELD,
    NEVER_DAYS,
    PRIOR_ORDERS,
    SOCIAL,
    STATIC,
    WINDOWS_DAYS,
    table,
)
from featurestore.fold_settings import DAY_MS, WEEK_MS, half_lives_ms
from featurestore.rows import Records
from featurestore.settings import FeatureSettings
from featurestore.state import (
    ACTIONS,
    BUCKETS,
    CATEGORIES,
    CHANNELS,
    CIRCLE,
    HOURS,
    ORDERS,
    VALUES,
    States,
)
from featurestore.step import TOKENS

__all__ = ["FEATURES", "TOKENS", "encode"]

Floats = npt.NDArray[np.float32]
Times = npt.NDArray[np.int64]

_ONE = np.float32(1)
_NEVER = np.float32(NEVER_DAYS)
_LOG_NEVER = np.float32(np.log1p(NEVER_DAYS))
_MINUTE_MS = 60_000
# Users whose columns fit into a core's cache with all their query times.
_CHUNK = 256
_RECENCIES, _AGES = 6, 3
_DECAYED = STATIC + _RECENCIES + _AGES
_WINDOWS = len(FEATURES) - 3 * len(WINDOWS_DAYS)
_DOUBLINGS = 1000.0  # more would leave the range of a double


def encode(
    sides: Records | States,
    as_of_ms: Times,
    log_start_ms: int | None,
    settings: FeatureSettings,
    *,
    held: bool = False,
    windows: bool = True,
) -> Floats:
    """Features of `sides` (U,) STATE at `as_of_ms` (U,) -> (U, F), or (U, K) -> (U, K, F).

    States stand for their heads. log_start_ms: first event time of the log that the model knows.
    held: with the columns HELD. windows: off leaves those of windows 0, which take half the time,
    for whoever does not read them.
    """
    rows = sides.head if isinstance(sides, States) else sides
    when = as_of_ms[:, None] if as_of_ms.ndim == 1 else as_of_ms
    out = np.empty((*when.shape, len(table(settings, held=held))), np.float32)
    for begin in range(0, len(rows), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        _encode(rows[part], when[part], log_start_ms, settings, held, windows, out[part])
    return out[:, 0] if as_of_ms.ndim == 1 else out


def _encode(
    sides: Records,
    when: Times,
    log_start_ms: int | None,
    settings: FeatureSettings,
    held: bool,
    windows: bool,
    out: Floats,
) -> None:
    out[:, :, :STATIC] = _static(sides, settings.order_value_prior)[:, None]
    last = sides["last_ms"]
    known = last != NO_TIME
    last = np.where(known, last, when.min(axis=1))
    silence = _days(np.maximum(when - last[:, None], 0))  # (U, K)

    logs = out[:, :, STATIC:_DECAYED]
    for j, before in enumerate(_before_last(sides, last)):
        np.add(silence, before[:, None], out=logs[:, :, j])
    if log_start_ms is None:
        logs[:, :, -1] = 0
    else:
        logs[:, :, -1] = _days(np.maximum(when - log_start_ms, 0))
    logs += _ONE
    np.log(logs, out=logs)

    _decayed(sides, last, silence, settings, out[:, :, _DECAYED:_WINDOWS])
    if windows:
        _windows(sides, last, silence, out[:, :, _WINDOWS : len(FEATURES)])
    else:
        out[:, :, _WINDOWS : len(FEATURES)] = 0
    end = len(FEATURES)
    if held:
        out[:, :, end : end + len(HELD)] = _held(sides, last, settings)[:, None]
        end += len(HELD)
    if settings.social:
        _social(sides, last, silence, settings, out[:, :, end:])
    # Of whom nothing is known, everything is never; they have been with us for no time.
    out[~known, :, STATIC + _RECENCIES] = 0


def _days(ms: Times) -> Floats:
    return (ms * (1 / DAY_MS)).astype(np.float32)


def _log1p(x: npt.NDArray[np.floating]) -> Floats:
    """log(1 + x) in float32: near 0 it is exact to 1e-7 in absolute terms, which is harmless."""
    out: Floats = np.log(x.astype(np.float32) + _ONE)
    return out


def _signed(x: npt.NDArray[np.floating]) -> Floats:
    out: Floats = np.copysign(_log1p(np.abs(x)), x)
    return out


def _static(sides: Records, prior: float) -> Floats:
    """Columns that do not depend on the query time, (U, STATIC)."""
    out = np.empty((len(sides), STATIC), np.float32)
    orders = sides["orders"]
    gross, refunded = sides["gross_micro"] / 1e6, sides["refunded_micro"] / 1e6
    out[:, 0:3] = _log1p(sides["counts"])
    out[:, 3] = _log1p(orders)
    out[:, 4] = _log1p(sides["refunds"])
    out[:, 5] = _log1p(sides["sessions"])
    out[:, 6] = _log1p(gross)
    out[:, 7] = _log1p(refunded)
    out[:, 8] = _signed(gross - refunded)
    out[:, 9] = np.minimum(np.where(gross > 0, refunded / np.maximum(gross, 1e-6), 0), 2)
    out[:, 10] = np.log((gross + PRIOR_ORDERS * prior) / (orders + PRIOR_ORDERS))

    rhythm = sides["rhythm"]
    events = sides["counts"].sum(axis=1)
    spans = (
        (11, orders, "first_order_ms", "last_order_ms", "order_gap_ms", 1),
        (14, events, "first_ms", "last_ms", "event_gap_ms", 3),
    )
    for at, number, first, last, gap, column in spans:
        some = number > 1
        span = np.where(some, sides[last] - sides[first], 0)
        out[:, at] = np.where(some, _log1p(sides[gap] / DAY_MS), _LOG_NEVER)
        mean = span / (np.maximum(number, 2) - 1.0)
        out[:, at + 1] = np.where(some, _log1p(mean / DAY_MS), _LOG_NEVER)
        weight = rhythm[:, column + 1]
        typical = rhythm[:, column] / np.where(weight > 0, weight, 1)
        out[:, at + 2] = np.where(weight > 0, typical, _LOG_NEVER)

    started = sides["session_ms"] != NO_TIME
    session = np.where(started, sides["last_ms"] - sides["session_ms"], 0)
    out[:, 17] = _log1p(session / _MINUTE_MS)
    out[:, 18] = _log1p(sides["session_events"])
    mix = sides["mix"]
    out[:, 19:27] = _shares(mix[:, CATEGORIES : CATEGORIES + 8])
    out[:, 27:35] = _shares(mix[:, ACTIONS : ACTIONS + 8])
    slots = _shares(mix[:, HOURS:]).reshape(-1, 7, 4)
    out[:, 35:39] = slots.sum(axis=1)
    out[:, 39:46] = slots.sum(axis=2)
    return out


def _shares(sums: Floats) -> Floats:
    total = sums.sum(axis=1, keepdims=True)
    out: Floats = (sums / np.where(total > 0, total, 1)).astype(np.float32, copy=False)
    return out


def _before_last(sides: Records, last: Times) -> list[Floats]:
    """Days by which each recency and age began before the last event, (U,) each."""
    kinds = sides["last_type_ms"]
    times = [sides["last_ms"], kinds[:, 0], kinds[:, 1], kinds[:, 2], sides["last_order_ms"]]
    times += [sides["last_refund_ms"], sides["first_ms"], sides["first_order_ms"]]
    return [
        np.where(time == NO_TIME, _NEVER, _days(last - np.where(time == NO_TIME, last, time)))
        for time in times
    ]


def _decayed(
    sides: Records, last: Times, silence: Floats, settings: FeatureSettings, out: Floats
) -> None:
    """Decayed counts, values and sessions: signed log1p of sum x 2^(-silence / half-life)."""
    at = 0
    for h, half_life in enumerate(half_lives_ms(settings)):
        since = np.exp2(-(last % half_life) / half_life)
        now = np.exp2(silence * np.float32(-DAY_MS / half_life))  # (U, K)
        sums = sides["decayed"][:, h]
        if h == 1:
            sums = np.concatenate([sums, sides["rhythm"][:, :1]], axis=1)
        width = sums.shape[1]
        block = out[:, :, at : at + width]
        start = (sums * since[:, None]).astype(np.float32)
        np.multiply(start[:, None], now[:, :, None], out=block)
        at += width
    # Only values can be negative.
    negative = sides["refunds"].any()
    sign = out.copy() if negative else out
    if negative:
        np.abs(out, out=out)
    out += _ONE
    np.log(out, out=out)
    if negative:
        np.copysign(out, sign, out=out)


def _held(sides: Records, last: Times, settings: FeatureSettings) -> Floats:
    """Decayed orders and value as of the last event of value, (U, HELD)."""
    out = np.empty((len(sides), len(HELD)), np.float32)
    moment = np.maximum(sides["last_order_ms"], sides["last_refund_ms"])
    passed = last - np.where(moment == NO_TIME, last, moment)
    for h, half_life in enumerate(half_lives_ms(settings)):
        grown = np.exp2(np.minimum((passed - last % half_life) / half_life, _DOUBLINGS))
        sums = sides["decayed"][:, h]
        out[:, 2 * h] = _log1p(sums[:, ORDERS] * grown)
        out[:, 2 * h + 1] = _signed(sums[:, VALUES:].sum(axis=1) * grown)
    return out


def _windows(sides: Records, last: Times, silence: Floats, out: Floats) -> None:
    """Orders, events and value of the last days: interpolated in what buckets cumulate."""
    users = np.arange(len(sides))[:, None]
    at = 0
    for which, span, windows in ((0, DAY_MS, WINDOWS_DAYS[:1]), (1, WEEK_MS, WINDOWS_DAYS[1:])):
        number = last // span
        newest = (number[:, None] - np.arange(BUCKETS)) % BUCKETS
        totals = np.zeros((len(sides), BUCKETS + 2, 3), np.float32)
        np.cumsum(sides["buckets"][users, which, newest], axis=1, out=totals[:, 1:-1])
        totals[:, -1] = totals[:, -2]
        # Buckets that a window covers, counted back from the end of the last event's.
        ahead = (((number + 1) * span - last) / span).astype(np.float32)
        passed = silence * np.float32(DAY_MS / span)
        for days in windows:
            covered = (ahead + np.float32(days * DAY_MS / span))[:, None] - passed
            np.clip(covered, 0, BUCKETS, out=covered)
            whole = covered.astype(np.intp)
            covered -= whole
            low = totals[users, whole]
            high = totals[users, whole + 1]
            high -= low
            high *= covered[:, :, None]
            np.add(low, high, out=out[:, :, at : at + 3])
            at += 3
    values = out[:, :, 2::3].copy()
    np.abs(out, out=out)
    out += _ONE
    np.log(out, out=out)
    out[:, :, 2::3] = np.copysign(out[:, :, 2::3], values)


def _social(
    sides: Records, last: Times, silence: Floats, settings: FeatureSettings, out: Floats
) -> None:
    """Degree, edges, time since the last one, decayed edges; (U, K, SOCIAL)."""
    codes = np.bitwise_count(sides["circle"]).sum(axis=1, dtype=np.int64)
    out[:, :, 0] = _log1p(counted(codes))[:, None]
    out[:, :, 1] = _log1p(sides["edges"])[:, None]
    time = sides["last_edge_ms"]
    some = time != NO_TIME
    before = np.where(some, _days(last - np.where(some, time, last)), _NEVER)
    out[:, :, 2] = _log1p(silence + before[:, None])
    for h, half_life in enumerate(half_lives_ms(settings)):
        since = np.exp2(-(last % half_life) / half_life)
        now = np.exp2(silence * np.float32(-DAY_MS / half_life))
        start = (sides["decayed_edges"][:, h] * since).astype(np.float32)
        out[:, :, 3 + h] = _log1p(start[:, None] * now)


def counted(codes: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """How many different users stand behind so many different codes: linear counting.

    Whang, Vander-Zanden & Taylor 1990. A full circle counts as one with half a code left.

    >>> counted(np.array([0, 1, 100, 255])).round(1).tolist()
    [0.0, 1.0, 126.9, 1589.8]
    """
    buckets = CIRCLE - 1.0
    out: npt.NDArray[np.float64] = buckets * np.log(buckets / np.maximum(buckets - codes, 0.5))
    return out


def interests(sides: Records) -> Floats:
    """(U, WORDS) what users' events were about: decayed words, each row of length 1, or 0.

    Of length 1, so silence does not move it: all words fade alike.
    """
    words = sides["words"]
    length = np.sqrt(np.square(words, dtype=np.float64).sum(axis=1, keepdims=True))
    out: Floats = (words / np.where(length > 0, length, 1)).astype(np.float32)
    return out


# The table and the code agree.
assert len(SOCIAL) == 6
assert 3 * len(CHANNELS) + 1 == _WINDOWS - _DECAYED
