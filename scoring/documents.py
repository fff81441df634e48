"""User documents as JSON bytes, built for many users at once; and how to read one at a time T.

The readable twin is scoring.values.UserValue; a test holds both equal. Numbers are rounded in
numpy and written by orjson in one call for all users, then sliced as text, so that Python never
touches a single float: about 84 of them a document.

Shapes: U users, K knots of silence, H horizons. Money of the past comes in millionths and is
written exactly (as the shortest double); predictions carry 5 significant digits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from featurestore import times
from featurestore.columns import NO_TIME
from featurestore.events import TYPES
from featurestore.settings import ValueSettings
from scoring.errors import ScoringError
from scoring.generation import Generation
from scoring.interface import Prediction
from scoring.lifetime import lifetime, lifetimes
from scoring.settings import ModelSettings

DIGITS = 5
THIN_ORDERS = 2
THIN_MS = 30 * times.DAY_MS
_TINY = 1e-15  # smaller numbers are written as 0: ten to more than 22 is no exact double

_TENS = 10.0 ** np.arange(23)
_STAMP = np.frombuffer(b'"0000-00-00T00:00:00.000Z"', np.uint8)
_PAIRS = np.frombuffer(b"".join(b"%02d" % n for n in range(100)), np.uint8).reshape(100, 2)

Floats64 = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]


class Cause(NamedTuple):
    """Why a document is written: the last event it counts, or `silence`, `generation`, …"""

    type: str
    event_id: str | None
    topic: str | None
    partition: int | None
    offset: int | None


class Documents:
    """Writes the documents of one generation."""

    def __init__(self, value: ValueSettings, model: ModelSettings, generation: Generation) -> None:
        self.horizons = horizon_names(generation.model.horizons_s)
        if model.headline not in self.horizons:
            raise ScoringError(
                f"model.headline is {model.headline}, but generation {generation.short} predicts "
                f"{', '.join(self.horizons)}: set the headline to one of them"
            )
        self.headline = self.horizons.index(model.headline)
        seen = generation.manifest.seen_types
        self._unseen = orjson.dumps([name for name in TYPES if name not in seen])
        self._start, self._end = _template(
            self.horizons, model, value, self._unseen, generation.short
        )
        self._days = tuple(seconds // 86_400 for seconds in generation.model.horizons_s)
        named = [b'"%b":%%b' % name.encode() for name in self.horizons]
        # by how many horizons a user is older than: one that has passed is not named
        self._lifetime = [
            b',"lifetime":{' + b",".join(named[passed:]) + b"}" for passed in range(len(named))
        ]
        self._previous = (
            b'{"revision":%d'
            + b"".join(b',"%b":%%b' % name.encode() for name in self.horizons)
            + b"}"
        )

    def build(
        self,
        users: Sequence[str],
        revision: int,
        as_of_ms: Times,
        prediction: Prediction,
        history: Mapping[str, npt.NDArray[Any]],
        previous_revision: npt.NDArray[np.integer[Any]],
        previous: npt.NDArray[np.floating[Any]],
        causes: Sequence[Cause],
    ) -> list[bytes]:
        """One document a user.

        as_of_ms (U,); history: columns (U,) of featurestore.state.history; previous_revision (U,),
        0 where there was no document; previous (U, H), not finite where there was none.
        """
        n = len(users)
        if not n:
            return []
        h = len(self.horizons)
        values = np.empty((n, h, 7))
        values[:, :, 0] = prediction.expected[:, 0]
        values[:, :, 1] = prediction.p_active[:, 0]
        values[:, :, 2] = prediction.p50
        values[:, :, 3] = prediction.p90
        values[:, :, 4:] = prediction.if_active
        numbers = _numbers(values)  # U x 7H
        befores = _numbers(np.asarray(previous, np.float64))  # U x H
        known = (np.asarray(previous_revision) > 0) & np.isfinite(previous).all(axis=1)
        silence = np.empty((n, 2, h, prediction.expected.shape[1]))
        silence[:, 0] = prediction.expected.transpose(0, 2, 1)
        silence[:, 1] = prediction.p_active.transpose(0, 2, 1)
        curves = _rows(silence)  # U x 2H
        start, end, said_before = self._start, self._end, self._previous
        evidence = evidence_of(history["orders"], history["first_ms"], as_of_ms)
        since_first = self._lifetimes(as_of_ms, values[:, :, 0], history)
        rows = zip(
            users,
            _stamps(as_of_ms),
            known.tolist(),
            np.asarray(previous_revision).tolist(),
            history["orders"].tolist(),
            _exact(history["spent_micro"]),
            _exact(history["gross_micro"]),
            history["refunds"].tolist(),
            _exact(history["refunded_micro"]),
            _stamps(history["first_ms"]),
            _stamps(history["last_ms"]),
            _stamps(history["last_order_ms"]),
            since_first,
            evidence,
            causes,
            strict=True,
        )
        dumps = orjson.dumps
        width, pairs = 7 * h, 2 * h
        documents = []
        for at, (user, as_of, has, before, *past, proof, cause) in enumerate(rows):
            documents.append(
                start
                % (
                    dumps(user),
                    revision,
                    as_of,
                    *numbers[at * width : (at + 1) * width],
                    said_before % (before, *befores[at * h : (at + 1) * h]) if has else b"null",
                    *curves[at * pairs : (at + 1) * pairs],
                )
                + end
                % (
                    *past,
                    proof,
                    cause.type.encode(),
                    b"null" if cause.event_id is None else dumps(cause.event_id),
                    b"null" if cause.topic is None else dumps(cause.topic),
                    b"null" if cause.partition is None else b"%d" % cause.partition,
                    b"null" if cause.offset is None else b"%d" % cause.offset,
                )
            )
        return documents

    def _lifetimes(
        self, as_of_ms: Times, expected: Floats64, history: Mapping[str, npt.NDArray[Any]]
    ) -> list[bytes]:
        """JSON of `lifetime` with its name, of each user; nothing for the old."""
        first = history["first_ms"]
        young = as_of_ms - first < self._days[-1] * times.DAY_MS
        # the difference wraps where nothing is known of a user
        young &= first != NO_TIME
        out = [b""] * len(first)
        rows = np.flatnonzero(young)
        if len(rows):
            age = (as_of_ms[rows] - first[rows]) / times.DAY_MS
            spent = history["spent_micro"][rows] / 1e6
            worth = lifetimes(spent, age, expected[rows], self._days)
            passed = np.isnan(worth).sum(axis=1)
            texts = _numbers(np.nan_to_num(worth))
            h = len(self._days)
            for n, (row, none) in enumerate(zip(rows.tolist(), passed.tolist(), strict=True)):
                out[row] = self._lifetime[none] % (*texts[n * h + none : (n + 1) * h],)
        return out


def horizon_names(horizons_s: Sequence[int]) -> tuple[str, ...]:
    """Names of horizons given in seconds.

    >>> horizon_names((7 * 86400, 90 * 86400))
    ('d7', 'd90')
    """
    return tuple(f"d{seconds // 86400}" for seconds in horizons_s)


def significant(numbers: npt.NDArray[np.floating[Any]]) -> Floats64:
    """Rounded to 5 significant digits, as the double nearest to that decimal.

    >>> significant(np.array([0.0, 1.234567, -98765.4, 2.5e-7])).tolist()
    [0.0, 1.2346, -98765.0, 2.5e-07]
    """
    x = np.asarray(numbers, np.float64)
    size = np.abs(x)
    tiny = ~(size >= _TINY)  # NaN too
    size[tiny] = 1.0
    digits = (DIGITS - 1) - np.floor(np.log10(size)).astype(np.int64)
    # Powers of ten up to 22 are exact, so one rounding by * or / gives the nearest double.
    scale = _TENS[np.maximum(digits, 0)]
    rounded: Floats64 = np.rint(x * scale)
    rounded /= scale
    large = digits < 0
    if large.any():
        scale = _TENS[np.minimum(-digits[large], 22)]
        rounded[large] = np.rint(x[large] / scale) * scale
    if tiny.any():
        rounded[tiny] = np.where(np.isnan(x[tiny]), x[tiny], 0.0)
    return rounded


def evidence_of(
    orders: npt.NDArray[np.integer[Any]], first_ms: Times, as_of_ms: Times
) -> list[bytes]:
    """How much is known of each user: cold, thin or enough."""
    first = np.where(first_ms == NO_TIME, as_of_ms, first_ms)
    thin = (orders <= THIN_ORDERS) | (as_of_ms - first < THIN_MS)
    names = (b"enough", b"thin", b"cold")
    return [names[i] for i in np.where(orders <= 0, 2, thin.astype(np.int64)).tolist()]


def at(document: Mapping[str, Any], when_ms: int) -> dict[str, Any]:
    """A document as it reads at a later time if the user has stayed silent since.

    `expected` and `p_active` follow the silence curve: linear between knots, after the last knot
    the last value. Quantiles are not kept over time and fall away. At or before its own `as_of`
    a document says what it says. `lifetime` is made anew of what is read (scoring.lifetime).

    >>> curve = {"days": [0, 2], "expected": {"d7": [4.0, 2.0]}, "p_active": {"d7": [0.5, 0.1]}}
    >>> document = {"as_of": "2011-01-01T00:00:00Z", "values": {"d7": {}}, "silence": curve}
    >>> at(document, times.parse("2011-01-02T00:00:00Z"))["values"]
    {'d7': {'expected': 3.0, 'p_active': 0.3}}
    """
    since = when_ms - times.parse(document["as_of"])
    if since <= 0:
        return dict(document)
    silence = document["silence"]
    knots = [day * times.DAY_MS for day in silence["days"]]
    left = max(bisect_right(knots, since) - 1, 0)
    right = min(left + 1, len(knots) - 1)
    span = knots[right] - knots[left]
    share = (since - knots[left]) / span if span > 0 else 0.0

    def read(curve: Sequence[float]) -> float:
        value = curve[left] + (curve[right] - curve[left]) * share
        return float(f"{value:.{DIGITS}g}")

    values = {
        name: {
            "expected": read(silence["expected"][name]),
            "p_active": read(silence["p_active"][name]),
        }
        for name in document["values"]
    }
    out = {**document, "as_of": times.text(when_ms), "values": values}
    if "lifetime" in out:
        past = document["history"]
        age_days = (when_ms - times.parse(past["first_event_at"])) / times.DAY_MS
        expected = {name: of["expected"] for name, of in values.items()}
        found = lifetime(past["spent"], age_days, expected)
        out["lifetime"] = {name: float(f"{value:.{DIGITS}g}") for name, value in found.items()}
        if not found:
            del out["lifetime"]
    return out


def _template(
    horizons: Sequence[str],
    model: ModelSettings,
    value: ValueSettings,
    unseen: bytes,
    generation: str,
) -> tuple[bytes, bytes]:
    """The document with %b and %d where users differ, in two halves."""
    seven = (
        b'{"expected":%b,"p_active":%b,"p50":%b,"p90":%b,"if_active":{"p10":%b,"p50":%b,"p90":%b}}'
    )
    named = [orjson.dumps(name) for name in horizons]
    values = b",".join(name + b":" + seven for name in named)
    curves = b",".join(name + b":[%b]" for name in named)
    days = orjson.dumps([int(day) if day == int(day) else day for day in model.silence_days])
    start = (
        b'{"v":1,"user_id":%b,"revision":%d,"as_of":%b,"headline":'
        + orjson.dumps(model.headline)
        + b',"values":{'
        + values
        + b'},"previous":%b,"silence":{"days":'
        + days
        + b',"expected":{'
        + curves
        + b'},"p_active":{'
        + curves
        + b"}}"
    )
    unit = orjson.dumps({"kind": value.kind, "code": value.currency}).replace(b"%", b"%%")
    end = (
        b',"history":{"orders":%d,"spent":%b,"spent_gross":%b,"refunds":%d,"refunded":%b,'
        b'"first_event_at":%b,"last_event_at":%b,"last_order_at":%b}%b,"unit":'
        + unit
        + b',"evidence":"%b","unseen":'
        + unseen
        + b',"generation":'
        + orjson.dumps(generation)
        + b',"cause":{"type":"%b","event_id":%b,"topic":%b,"partition":%b,"offset":%b}}'
    )
    return start, end


def _dump(numbers: npt.NDArray[Any]) -> bytes:
    return orjson.dumps(np.ascontiguousarray(numbers), option=orjson.OPT_SERIALIZE_NUMPY)


def _numbers(numbers: npt.NDArray[np.floating[Any]]) -> list[bytes]:
    """JSON of each number, flat, at 5 significant digits."""
    return _dump(significant(numbers).ravel())[1:-1].split(b",")


def _exact(micro: npt.NDArray[np.integer[Any]]) -> list[bytes]:
    """JSON of each amount in major units. Exact below 2**53 millionths: one rounding."""
    return _dump(np.asarray(micro, np.int64) / 1e6)[1:-1].split(b",")


def _rows(curves: Floats64) -> list[bytes]:
    """JSON of the numbers of each knot list, (U, 2, H, K) -> U x 2 x H texts without brackets."""
    return _dump(significant(curves).reshape(-1, curves.shape[3]))[2:-2].split(b"],[")


def _stamps(ms: Times) -> list[bytes]:
    """JSON of each time; null for NO_TIME. As featurestore.times.text, digits set in numpy."""
    none = ms == NO_TIME
    days, clock = np.divmod(np.where(none, 0, ms), times.DAY_MS)
    day = days.astype("M8[D]")
    month = day.astype("M8[M]")
    year = month.astype("M8[Y]").astype(np.int64) + 1970
    seconds, millis = np.divmod(clock, 1000)
    table = np.empty((len(ms), len(_STAMP)), np.uint8)
    table[:] = _STAMP
    for at, pair in (
        *((1, year // 100), (3, year % 100), (6, month.astype(np.int64) % 12 + 1)),
        *((9, (day - month.astype("M8[D]")).astype(np.int64) + 1), (12, seconds // 3600)),
        *((15, seconds // 60 % 60), (18, seconds % 60), (22, millis % 100)),
    ):
        table[:, at : at + 2] = _PAIRS[pair]
    table[:, 21] += (millis // 100).astype(np.uint8)
    texts, width = table.tobytes(), len(_STAMP)
    stamps = [texts[at : at + width] for at in range(0, len(texts), width)]
    for at in np.flatnonzero(none | (millis == 0)).tolist():
        stamps[at] = b"null" if none[at] else stamps[at][:20] + b'Z"'
    return stamps
