"""Messages of vendors, as the tests of mappings need them.

tests/golden/mappings holds for each mapping the messages as the vendor's public specification shows
them (`.in.jsonl`) and, line by line, what became of every event in them (`.out.jsonl`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from livevalue.mapping.engine import Mapper, Outcome
from livevalue.mapping.spec import load

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "mappings"


def messages(name: str) -> list[bytes]:
    return (GOLDEN / f"{name}.in.jsonl").read_bytes().splitlines()


def track(event: str, more: dict[str, Any] | None = None, **properties: Any) -> bytes:
    message: dict[str, Any] = {
        "type": "track",
        "event": event,
        "messageId": "m-1",
        "userId": "ada",
        "timestamp": "2024-01-01T00:00:00Z",
        "properties": properties,
    }
    return orjson.dumps(message | (more or {}))


def one(raw: bytes, mapper: Mapper | None = None) -> Outcome:
    (outcome,) = (mapper or Mapper(load("segment"))).map(raw)
    return outcome
