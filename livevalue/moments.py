"""A time as people write it on a command line."""

from __future__ import annotations

from datetime import UTC, datetime

import typer


def moment(text: str) -> datetime:
    """A date or RFC 3339 instant; without a zone it is UTC.

    >>> moment("2011-09-10").isoformat(), moment("2011-09-10T12:00:00Z").isoformat()
    ('2011-09-10T00:00:00+00:00', '2011-09-10T12:00:00+00:00')
    """
    try:
        when = datetime.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no date or time: write 2011-09-10 or 2011-09-10T12:00:00Z"
        ) from None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def moment_ms(text: str) -> int:
    """The same in milliseconds.

    >>> moment_ms("1970-01-02"), moment_ms("1970-01-01T01:00:00+01:00")
    (86400000, 0)
    """
    return round(moment(text).timestamp() * 1000)
