"""The input contract, as promised to users."""

from __future__ import annotations

from decimal import Decimal

import pytest
from pydantic import ValidationError

from featurestore.columns import Kind
from featurestore.events import (
    ACTIONS,
    Browse,
    Interaction,
    NotJson,
    Purchase,
    action_code,
    category_code,
    loads,
    parse,
)
from featurestore.records import BrowseRecord, InteractionRecord, PurchaseRecord, fields_of


def test_a_number_keeps_its_decimal_text() -> None:
    event = parse(
        b'{"type":"purchase","user_id":"a","event_time":1,"amount":0.1000000000000000055}'
    )
    assert isinstance(event, Purchase)
    assert event.amount == Decimal("0.1")
    assert parse(event.model_dump_json().encode()) == event


def test_a_float_is_refused_as_an_amount() -> None:
    with pytest.raises(ValidationError, match="not exact"):
        Purchase(user_id="a", event_time=1, amount=0.1)


def test_the_topic_may_say_the_type() -> None:
    event = parse(b'{"user_id":"a","event_time":"1970-01-01T00:00:00.5Z"}', "browse")
    assert isinstance(event, Browse)
    assert (event.event_time, event.kind) == (500, Kind.BROWSE)


@pytest.mark.parametrize("name", ["user_id", "event_id"])
def test_lengths_count_characters_not_bytes(name: str) -> None:
    limit = {"user_id": 256, "event_id": 128}[name]
    fields = {"user_id": "u", "event_time": 0, "action": "like"}
    Interaction.model_validate(fields | {name: "😀" * limit})
    for bad in ("", "a" * (limit + 1), 5, True, ["a"]):
        with pytest.raises(ValidationError):
            Interaction.model_validate(fields | {name: bad})


@pytest.mark.parametrize(
    ("model", "record"),
    [(Browse, BrowseRecord), (Purchase, PurchaseRecord), (Interaction, InteractionRecord)],
)
def test_both_twins_have_the_same_fields(
    model: type[Browse] | type[Purchase] | type[Interaction],
    record: type[BrowseRecord] | type[PurchaseRecord] | type[InteractionRecord],
) -> None:
    assert set(model.model_fields) == fields_of(record)


def test_codes_are_stable() -> None:
    # They are stored in states: a change needs a new state version.
    assert [action_code(name) for name in ACTIONS] == list(range(1, 14))
    assert action_code("unboxed") == 60395
    assert 256 <= action_code("cart_add ") < 65536
    assert (category_code(None), category_code(""), category_code("shoes")) == (0, 0, 38503)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xef\xbb\xbf{}",
        b"{",
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":"\\ud800"}',
        b"[" * 101,
        b"[" * 100000,
        b'{"a":"\xff"}',
        b'{"a":1}{',
        b'{"a":01}',
        b'{"\\udfff":1}',
        b'{"a":"\t"}',
    ],
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(NotJson):
        loads(data)


def test_nesting_counts_no_brackets_inside_strings() -> None:
    assert loads(b'["' + b"[" * 1000 + b'\\"{"]') == ["[" * 1000 + '"{']
