"""Why a record is a dead letter: reasons that users filter by, and the record's name.

Bad data is a value: the codec answers with `Rejected`, the pipeline names it in the outbox, and
streams.emit writes the record's raw bytes to the dead-letter topic with Kafka Connect's headers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

# Header of a record that `dlq replay` sent again: partition and offset where it lay first. An event
# without an id has no other identity, and could otherwise count once for each time it is sent.
ORIGIN = "livevalue.replay.of"
# Headers that streams.emit writes behind Kafka Connect's.
RAW = "livevalue.raw"  # whole, truncated or gone
TIMESTAMP = "livevalue.timestamp"  # of the record, in ms; not where it is gone
_ORIGIN = re.compile(rb"[0-9]{1,9}:[0-9]{1,19}\Z")


class Reason(StrEnum):
    """Promised to users: names may be added, not changed."""

    TOO_LARGE = "too_large"  # value above kafka.max_record_bytes
    NOT_JSON = "not_json"  # not UTF-8 JSON: also empty, NaN, lone surrogates, nested too deep
    NOT_OBJECT = "not_object"  # JSON, but no object
    MISSING_FIELD = "missing_field"
    INVALID_FIELD = "invalid_field"  # ill-typed or out of range
    WRONG_KEY = "wrong_key"  # no key, or another than user_id
    UNKNOWN_CURRENCY = "unknown_currency"  # no dated rate in the settings
    MISROUTED = "misrouted"  # in another partition than the partitioner says
    FUTURE = "future"  # event time beyond record timestamp + skew
    LATE = "late"  # too late to be counted
    CONFLICT = "conflict"  # other content under a known event id
    UNREADABLE = "unreadable"  # the codec failed on it: a bug, please report it


@dataclass(frozen=True, slots=True)
class Rejected:
    """One record that was not decoded."""

    source: int
    offset: int
    reason: Reason
    detail: str  # at most 200 characters: field and what is wrong with it


def origin(headers: Sequence[tuple[str, bytes]]) -> bytes:
    """Where a record lay that was sent again; empty where it was not.

    >>> origin([("trace", b"1"), (ORIGIN, b"3:41")]), origin([(ORIGIN, b"elsewhere")])
    (b'3:41', b'')
    """
    for name, value in headers:
        if name == ORIGIN and value and _ORIGIN.match(value):
            return value
    return b""
