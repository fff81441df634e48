"""Whatever stands in a vendor's message: what comes of it is valid, or parked with a reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.events import parse
from livevalue.mapping.engine import ADVICE, Mapper
from livevalue.mapping.report import Report
from livevalue.mapping.spec import load, names
from tests.livevalue.mapped import messages

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(["2024-01-01T00:00:00Z", "USD", "19.90", "1e400", "1690000000000000", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(name=st.sampled_from(names()), at=st.integers(0, 200), data=st.data())
def test_whatever_stands_in_a_message_it_is_valid_or_parked(
    name: str, at: int, data: st.DataObject
) -> None:
    lines = messages(name)
    message = json.loads(lines[at % len(lines)])
    for _ in range(data.draw(st.integers(1, 3))):
        spot: Any = message
        while True:
            keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(spot[key], dict | list) and spot[key] and data.draw(st.booleans()):
                spot = spot[key]
                continue
            spot[key] = data.draw(_JSON)
            break
    _holds(Mapper(load(name), separate=True), json.dumps(message).encode())


_ODD: list[Any] = [None, True, False, 0, -1, 10**20, 0.5, 1e300, [], [[]], [True], ["x"], {}]
_ODD += ["", " ", "\u00b2", "\u0663", "1e400", "\0", "USD", {"a": 1}, {"0": {"price": []}}]


def _spots(found: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a message: what holds it, and by which key."""
    for key in list(found) if isinstance(found, dict) else range(len(found)):
        yield found, key
        if isinstance(found[key], dict | list):
            yield from _spots(found[key])


@pytest.mark.parametrize("name", names())
def test_any_field_may_hold_anything(name: str) -> None:
    mapper, odds = Mapper(load(name), separate=True), cycle(_ODD)
    for line in messages(name):
        message = json.loads(line)
        for holder, key in list(_spots(message)):
            there = holder[key]
            for odd in islice(odds, 5):  # in turn: every field has some, a kind of field has all
                holder[key] = odd
                _holds(mapper, json.dumps(message).encode())
            holder[key] = there


def _holds(mapper: Mapper, raw: bytes) -> None:
    """What comes of a message is an event that the worker takes, or has a reason with advice."""
    report = Report()
    outcomes = mapper.map(raw)
    report.add("here", outcomes)
    for outcome in outcomes:
        if outcome.event is not None:
            event = parse(orjson.dumps(outcome.event))
            assert event.event_id
            assert outcome.micro == 0 or event.type == "purchase"
        elif outcome.status == "parked":
            assert outcome.reason in ADVICE
    assert len(report.worst()) <= 10
