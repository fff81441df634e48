"""Vendors' messages as their public specifications show them, and what becomes of each."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from livevalue.mapping.engine import Mapper, Outcome
from livevalue.mapping.spec import load, names
from streams.codec import Codec
from streams.log import FileRecord
from streams.settings import KafkaSettings, Settings
from tests.livevalue.mapped import GOLDEN, messages


@pytest.mark.parametrize("name", names())
def test_messages_of_the_public_specification_become_our_events(name: str) -> None:
    mapper = Mapper(load(name))
    expected = [json.loads(line) for line in (GOLDEN / f"{name}.out.jsonl").open()]
    assert [[_said(one) for one in mapper.map(raw)] for raw in messages(name)] == expected


@pytest.mark.parametrize("name", names())
def test_every_mapped_event_is_accepted_by_the_worker_s_codec(name: str) -> None:
    rates = [
        {"currency": code, "since": "2000-01-01", "rate": "1"} for code in ("USD", "JPY", "KWD")
    ]
    found = Settings.model_validate(
        {
            "kafka": KafkaSettings(mixed="events", partitions=1),
            "value": {"currency": "EUR", "rates": rates},
        }
    )
    mapper = Mapper(load(name))
    mapped = [one for raw in messages(name) for one in mapper.map(raw) if one.event]
    records = [
        FileRecord(
            one.event["user_id"].encode(), orjson.dumps(one.event), at, one.time_ms, 0, "golden"
        )
        for at, one in enumerate(mapped)
        if one.event
    ]
    decoded = Codec(found).decode(0, 0, records)
    assert decoded.rejected == []
    assert (decoded.unknown_fields, decoded.no_id) == (0, 0)
    assert len(decoded.batch.events) == len(mapped) > 2


@pytest.mark.parametrize("name", names())
def test_a_stream_that_is_read_again_gives_the_same_ids(name: str) -> None:
    def ids() -> list[str]:
        mapper = Mapper(load(name), separate=True)
        outcomes = [one for raw in messages(name) for one in mapper.map(raw)]
        return [one.event["event_id"] for one in outcomes if one.event]

    assert ids() == ids()
    assert len(set(ids())) == len(ids())


@pytest.mark.parametrize("name", names())
def test_no_rule_is_hidden_by_one_before_it(name: str) -> None:
    spec = load(name)
    own = spec.rules if name in ("segment", "ga4") else ()
    seen = [spec.plain(one) for rule in own for one in rule.names]
    assert len(seen) == len(set(seen))


def _said(outcome: Outcome) -> dict[str, Any]:
    if outcome.event is not None:
        return outcome.event
    fields = ("status", "name", "reason", "detail")
    return {field: value for field in fields if (value := getattr(outcome, field))}
