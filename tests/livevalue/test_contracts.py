"""Generated contracts: up to date, valid, and saying what the code does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from featurestore.events import parse
from featurestore.partitioner import NAMES, partition
from livevalue.contracts import FOLDER, drifted, main

GOOD: list[dict[str, Any]] = [
    {"type": "browse", "user_id": "ada", "event_time": 0, "dwell_ms": 5},
    {"type": "purchase", "user_id": "ada", "event_time": "2011-09-10T12:00:00Z", "amount": "-2.5"},
    {"user_id": "ada", "event_time": 1, "amount": 12, "currency": "EUR", "items": [{"price": "1"}]},
    {"type": "interaction", "user_id": "ada", "event_time": 1, "action": "our own", "rating": 4},
    {"type": "browse", "user_id": "ada", "event_time": 0, "properties": {"a": [1]}, "unknown": 1},
]
BAD: list[dict[str, Any]] = [
    {"type": "purchase", "user_id": "ada", "event_time": 1},
    {"type": "purchase", "user_id": "ada", "event_time": 1, "amount": "1,5"},
    {"type": "purchase", "user_id": "ada", "event_time": 1, "amount": 1, "currency": "eur"},
    {"type": "browse", "user_id": "", "event_time": 1},
    {"type": "browse", "user_id": "ada", "event_time": 1.5},
    {"type": "interaction", "user_id": "ada", "event_time": 1},
    {"type": "refund", "user_id": "ada", "event_time": 1, "amount": 1},
]


def schema(name: str) -> jsonschema.Draft202012Validator:
    found = json.loads((FOLDER / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_contracts_have_not_drifted_from_the_models() -> None:
    assert drifted() == [], "run python -m livevalue.contracts, and say so in the changelog"


def test_drift_fails_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--folder", str(tmp_path)]) == 0
    assert main(["--check", "--folder", str(tmp_path)]) == 0
    (tmp_path / "event.schema.json").write_text("{}")
    (tmp_path / "left_over.json").write_text("{}")
    assert main(["--check", "--folder", str(tmp_path)]) == 1
    assert "event.schema.json" in capsys.readouterr().out
    assert main(["--folder", str(tmp_path)]) == 0
    assert drifted(tmp_path) == []


@pytest.mark.parametrize("event", GOOD)
def test_the_schema_accepts_what_the_models_accept(event: dict[str, Any]) -> None:
    parse(json.dumps(event).encode(), "purchase")
    schema("event").validate(event)


@pytest.mark.parametrize("event", BAD)
def test_the_schema_refuses_what_the_models_refuse(event: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        schema("event").validate(event)
    with pytest.raises(ValueError, match=r".*"):
        parse(json.dumps(event).encode())


def test_vectors_are_many_and_true() -> None:
    file = json.loads((FOLDER / "partitioner.json").read_text())
    assert len({vector["key"] for vector in file["vectors"]}) == len(file["vectors"]) >= 40
    assert file["partitions"] == [1, 3, 8, 12]
    for vector in file["vectors"]:
        assert bytes.fromhex(vector["utf8"]).decode() == vector["key"]
        for name in NAMES:
            assert vector[name] == [partition(vector["key"], n, name) for n in file["partitions"]]


def test_the_value_schema_describes_a_document() -> None:
    value = schema("value")
    required = json.loads((FOLDER / "value.schema.json").read_text())["required"]
    assert set(required) >= {"v", "user_id", "revision", "as_of", "values", "cause"}
    with pytest.raises(jsonschema.ValidationError):
        value.validate({"v": 1})
