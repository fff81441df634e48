"""The traps of vendors' streams: clocks, amounts, refunds, visitors, and what is no message."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import orjson
import pytest

from livevalue.mapping import amounts
from livevalue.mapping.engine import Mapper
from livevalue.mapping.spec import load
from tests.livevalue.mapped import one, track


def test_the_device_s_uncorrected_clock_is_never_taken() -> None:
    raw = track("Product Viewed", {"originalTimestamp": "2020-01-01T00:00:00Z"})
    assert one(raw).time_ms == 1704067200000
    without = json.loads(raw)
    del without["timestamp"]
    without["sentAt"] = "2020-01-01T00:00:00Z"
    assert one(orjson.dumps(without)).reason == "missing_time"


def test_a_number_keeps_its_own_digits() -> None:
    raw = track("Order Completed", order_id="o", currency="USD")
    raw = raw.replace(b'"order_id"', b'"revenue":1234567890.123456,"order_id"')
    event = one(raw).event
    assert event is not None
    assert event["amount"] == "1234567890.123456"


@pytest.mark.parametrize(
    ("given_", "reason"),
    [
        ("1.299,00", "invalid_amount"),
        ("$5", "invalid_amount"),
        (True, "invalid_amount"),
        ([5], "invalid_amount"),
        ("9" * 80, "invalid_amount"),
        ("1e999999999", "invalid_amount"),
        (-5, "invalid_amount"),
        (" ", "missing_amount"),
        (None, "missing_amount"),
    ],
)
def test_an_amount_is_never_guessed(given_: Any, reason: str) -> None:
    assert one(track("Order Completed", revenue=given_, currency="USD")).reason == reason


def test_an_amount_without_a_currency_needs_a_setting() -> None:
    raw = track("Order Completed", revenue=5)
    assert one(raw).reason == "missing_currency"
    spec = load("segment")
    money = spec.money.model_copy(update={"default_currency": "EUR"})
    event = one(raw, Mapper(spec.model_copy(update={"money": money}))).event
    assert event is not None
    assert event["currency"] == "EUR"


@pytest.mark.parametrize(
    ("code", "major"), [("USD", "12.34"), ("JPY", "1234"), ("KWD", "1.234"), ("CLF", "0.1234")]
)
def test_minor_units_go_by_the_currency_s_exponent(code: str, major: str) -> None:
    assert amounts.major(Decimal(1234), "minor", code) == Decimal(major)


@pytest.mark.parametrize(("amount", "code"), [("12.5", "USD"), ("12", "XXX"), ("12", "")])
def test_what_cannot_be_a_minor_unit_is_refused(amount: str, code: str) -> None:
    with pytest.raises(amounts.NotMoney):
        amounts.major(Decimal(amount), "minor", code)


@pytest.mark.parametrize("said", [30, -30, "30.00"])
def test_a_refund_is_negative_whatever_its_sign(said: Any) -> None:
    event = one(track("Order Refunded", order_id="o", total=said, currency="USD")).event
    assert event is not None
    assert event["amount"] == "-30"


def test_a_refund_without_an_amount_takes_what_is_left_of_its_order_or_is_parked() -> None:
    mapper = Mapper(load("segment"))
    blank = track("Order Refunded", {"messageId": "r-2"}, order_id="o")
    assert one(blank, mapper).reason == "refund_without_amount"
    one(track("Order Completed", order_id="o", revenue=50, currency="USD"), mapper)
    some = track("Order Refunded", {"messageId": "r-1"}, order_id="o", total=20, currency="USD")
    one(some, mapper)
    for _ in range(2):  # said again, it stays what it was
        event = one(blank, mapper).event
        assert event is not None
        assert (event["amount"], event["currency"]) == ("-30", "USD")
    other = track("Order Refunded", {"messageId": "r-3"}, order_id="o")
    assert one(other, mapper).reason == "refund_without_amount"
    stranger = track("Order Refunded", {"userId": "bob"}, order_id="o")
    assert one(stranger, mapper).reason == "refund_without_amount"


def test_an_order_that_comes_again_under_another_id_is_counted_once() -> None:
    mapper = Mapper(load("segment"))
    first = track("Order Completed", order_id="o", revenue=50, currency="USD")
    assert one(first, mapper).status == "mapped"
    assert one(first, mapper).status == "mapped"  # the same id: the fold drops it
    again = track("Order Completed", {"messageId": "m-2"}, order_id="o", revenue=50, currency="USD")
    assert one(again, mapper).reason == "repeated_order"


def test_a_visitor_is_skipped_or_a_user_of_their_own_by_policy() -> None:
    raw = track("Product Viewed", {"userId": None, "anonymousId": "v-1"}, product_id="p")
    assert one(raw).status == "anonymous"
    event = one(raw, Mapper(load("segment"), separate=True)).event
    assert event is not None
    assert event["user_id"] == "v-1"


def test_an_id_too_long_for_the_contract_becomes_a_stable_one() -> None:
    event = one(track("Product Viewed", {"messageId": "x" * 200})).event
    assert event is not None
    assert len(event["event_id"]) == 36


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, "not_json"),
        (b"", "not_json"),
        (b"\xff{}", "not_json"),
        (b'{"type": NaN}', "not_json"),
        (b"[" * 200, "not_json"),
        (b"[]", "not_object"),
        (b"{}", "missing_name"),
        (b'{"batch": 5}', "not_object"),
        (b'{"batch": [5]}', "not_object"),
        (b'{"type": "track"}', "missing_name"),
        (b" " * (2 << 20), "too_large"),
    ],
)
def test_what_is_no_message_is_parked_with_a_reason(raw: bytes | None, reason: str) -> None:
    (outcome,) = Mapper(load("segment")).map(raw)
    assert (outcome.status, outcome.reason) == ("parked", reason)
