"""Times as integer milliseconds since 1970-01-01T00:00:00Z, and their RFC 3339 text.

Whole milliseconds: further digits of a second are cut off (towards the past). Years 1 to 9999
in UTC; a zone is required; leap seconds (`:60`) are refused, since POSIX time has none.
Source: RFC 3339 section 5.6, with its leave to write `t`, `z` and a space for the `T`.

>>> parse("2011-09-10T13:00:00.5+01:00")
1315656000500
>>> text(1315656000500), text(1315656000000)
('2011-09-10T12:00:00.500Z', '2011-09-10T12:00:00Z')
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

DAY_MS = 86_400_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
EARLIEST_MS = (1 - _EPOCH_DAY) * DAY_MS  # 0001-01-01T00:00:00Z
LATEST_MS = (date.max.toordinal() + 1 - _EPOCH_DAY) * DAY_MS - 1  # 9999-12-31T23:59:59.999Z

_RFC3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))\Z",
    re.ASCII,
)


class TimeError(ValueError):
    """The text is no RFC 3339 time, or out of range. A ValueError, so that pydantic reports it."""


def parse(text: str) -> int:
    """Milliseconds of an RFC 3339 text; TimeError where it is none."""
    match = _RFC3339.match(text)
    if match is None:
        raise TimeError(f"not an RFC 3339 time with zone: {text[:40]!r}")
    year, month, day, hour, minute, second, fraction, sign, zone_h, zone_m = match.groups()
    if hour > "23" or minute > "59" or second > "59" or (sign and (zone_h > "23" or zone_m > "59")):
        raise TimeError(f"no such time of day: {text[:40]!r}")
    try:
        days = date(int(year), int(month), int(day)).toordinal() - _EPOCH_DAY
    except ValueError:
        raise TimeError(f"no such day: {text[:40]!r}") from None
    minutes = int(hour) * 60 + int(minute)
    if sign:
        offset = int(zone_h) * 60 + int(zone_m)
        minutes += offset if sign == "-" else -offset
    millis = int((fraction or "")[:3].ljust(3, "0"))
    return checked(days * DAY_MS + minutes * 60_000 + int(second) * 1000 + millis)


def checked(ms: int) -> int:
    """`ms` if a document can show it (years 1 to 9999), else TimeError."""
    if not EARLIEST_MS <= ms <= LATEST_MS:
        raise TimeError(f"time out of range: {str(ms)[:40]} ms")
    return ms


def of(when: datetime) -> int:
    """Milliseconds of an aware datetime, cut to whole milliseconds."""
    if when.tzinfo is None:
        raise TimeError(f"time without zone: {when.isoformat()}")
    return checked((when - EPOCH) // timedelta(milliseconds=1))


def text(ms: int) -> str:
    """RFC 3339 in UTC; milliseconds are written only where they are not zero."""
    whole, rest = divmod(ms, 1000)
    stamp = (EPOCH + timedelta(seconds=whole)).replace(tzinfo=None).isoformat()
    return f"{stamp}.{rest:03d}Z" if rest else f"{stamp}Z"
