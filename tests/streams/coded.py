"""Records without a broker, codecs of several settings, and decoding on both paths."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from featurestore.settings import DatedRate, FeatureSettings, ValueRule, ValueSettings
from streams.codec import Codec, Decoded
from streams.deadletter import Reason
from streams.settings import KafkaSettings, Settings


@dataclass(frozen=True, slots=True)
class Record:
    """A record without a broker: the codec takes anything of this shape."""

    key: bytes | None
    value: bytes | None
    offset: int = 0
    timestamp: int = 1_315_656_000_000
    headers: tuple[tuple[str, bytes], ...] = ()


ONE = KafkaSettings(partitions=1)
BROWSE, PURCHASE, INTERACTION = 0, 1, 2
RULES = ValueSettings(
    currency="GBP",
    rules=(
        ValueRule(type="purchase", weight=Decimal("0.3")),
        ValueRule(type="interaction", action="play", field="duration_ms", weight=Decimal("0.001")),
        ValueRule(type="interaction", action="share", field="one"),
        ValueRule(type="interaction", field="rating"),
        ValueRule(type="browse", field="dwell_ms"),
    ),
    rates=(DatedRate(currency="EUR", since="2011-01-01", rate=Decimal("0.85")),),
)
CODECS = [
    Codec(Settings(kafka=ONE)),
    Codec(Settings(kafka=KafkaSettings(partitions=3, mixed="events"), value=RULES)),
    Codec(
        Settings(
            kafka=KafkaSettings(partitions=2, partitioner="fnv1a"),
            value=RULES,
            features=FeatureSettings(derive_ids=True, social=True, interests=True),
        )
    ),
    Codec(Settings(kafka=ONE, value=ValueSettings(kind="count", currency="points", rules=()))),
]


def event(**fields: Any) -> bytes:
    base = {"event_id": "e1", "user_id": "ada", "event_time": "2011-09-10T12:00:00Z"}
    return json.dumps(base | fields).encode()


def purchase(**fields: Any) -> Record:
    return Record(b"ada", event(**{"amount": "12.50"} | fields))


def decode(*records: Record, source: int = PURCHASE, codec: Codec = CODECS[0]) -> Decoded:
    """Decode on both paths, which must agree."""
    fast = codec.decode(source, 0, records)
    same(fast, codec.decode_slow(source, 0, records))
    return fast


def same(fast: Decoded, slow: Decoded) -> None:
    assert fast.rejected == slow.rejected
    assert fast.no_id == slow.no_id
    a, b = fast.batch, slow.batch
    assert a.users == b.users
    assert a.user.tolist() == b.user.tolist()
    assert a.events.tobytes() == b.events.tobytes()
    assert a.offset.tolist() == b.offset.tolist()
    assert a.log_ms.tolist() == b.log_ms.tolist()
    assert a.erases == b.erases
    assert a.event_id == b.event_id
    assert a.target == b.target


def reason(record: Record, source: int = PURCHASE) -> Reason:
    decoded = decode(record, source=source)
    assert decoded.batch.size == 0
    (rejected,) = decoded.rejected
    assert 0 < len(rejected.detail) <= 200
    rejected.detail.encode()
    return rejected.reason
