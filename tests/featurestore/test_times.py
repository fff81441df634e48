"""Times: equal to Python's datetime where it reads them, strict where it is lax."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import times

ZONES = st.integers(-23 * 60, 23 * 60).map(lambda m: timezone(timedelta(minutes=m)))


@given(st.integers(times.EARLIEST_MS + times.DAY_MS, times.LATEST_MS - times.DAY_MS), ZONES)
def test_a_time_equals_what_datetime_says(ms: int, zone: timezone) -> None:
    when = (times.EPOCH + timedelta(milliseconds=ms)).astimezone(zone)
    assert times.parse(when.isoformat()) == times.of(when) == ms


@given(st.integers(times.EARLIEST_MS, times.LATEST_MS))
def test_text_reads_back(ms: int) -> None:
    assert times.parse(times.text(ms)) == ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2011-09-10",
        "2011-09-10T12:00:00",
        "2011-09-10T12:00Z",
        "20110910T120000Z",
        "2011-02-29T00:00:00Z",
        "2011-09-10T24:00:00Z",
        "2011-09-10T23:59:60Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "2011-09-10T12:00:00+01",
        "2011-09-10T12:00:00+0100",
        "2011-09-10T12:00:00.Z",
        "1315656000",
        "2011-09-10T12:00:00Z ",
        "２011-09-10T12:00:00Z",
        "2011-09-10T12:00:00+24:00",
    ],
)
def test_what_is_no_rfc3339_time_is_refused(text: str) -> None:
    with pytest.raises(times.TimeError):
        times.parse(text)


def test_digits_below_a_millisecond_are_cut_towards_the_past() -> None:
    assert times.parse("1969-12-31T23:59:59.9999Z") == -1
    assert times.of(datetime(1969, 12, 31, 23, 59, 59, 999_900, UTC)) == -1


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(times.TimeError, match="zone"):
        times.of(datetime(2011, 9, 10))  # noqa: DTZ001
