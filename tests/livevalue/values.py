"""A deployment with a few users, written by the real store as a worker would."""

from __future__ import annotations

import json
from typing import Any

from pydantic import SecretStr

from featurestore.backends.redis import RedisStore
from featurestore.partitioner import partition
from featurestore.settings import StoreSettings
from featurestore.store import Commit, CommitOutcome, Identity, Meta, Watermark, Write
from scoring.values import UserValue
from streams.settings import KafkaSettings, Settings

PARTITIONS = 3
AS_OF = "2011-09-10T12:00:00Z"
AS_OF_MS = 1315656000000


def settings(bootstrap: str, redis_url: str, database: int, prefix: str = "") -> Settings:
    """Of one deployment that shares servers with others."""
    url = redis_url.rpartition("/")[0] + f"/{database}"
    names = ("browse", "purchase", "interaction", "scores", "dlq")
    kafka = {name: f"{prefix}{name}" for name in names} if prefix else {}
    return Settings(
        kafka=KafkaSettings.model_validate(
            {"bootstrap": bootstrap, "partitions": PARTITIONS, **kafka}
        ),
        store=StoreSettings(url=SecretStr(url)),
    )


def document(user: str, expected: float, revision: int = 1) -> dict[str, Any]:
    """As published, valid by the contract: worth half after two days of silence."""
    horizon = {"expected": expected, "p_active": 0.5, "p50": 0.0, "p90": 3.0}
    horizon |= {"if_active": {"p10": 1.0, "p50": 2.0, "p90": 3.0}}  # type: ignore[dict-item]
    names = ("d7", "d30", "d90")
    made: dict[str, Any] = {
        "v": 1,
        "user_id": user,
        "revision": revision,
        "as_of": AS_OF,
        "headline": "d90",
        "values": dict.fromkeys(names, horizon),
        "previous": None,
        "silence": {
            "days": [0, 2],
            "expected": {name: [expected, expected / 2] for name in names},
            "p_active": {name: [0.5, 0.25] for name in names},
        },
        "history": {
            "orders": 3,
            "spent": 120.5,
            "spent_gross": 140.5,
            "refunds": 1,
            "refunded": 20.0,
            "first_event_at": "2011-01-01T00:00:00Z",
            "last_event_at": AS_OF,
            "last_order_at": AS_OF,
        },
        "unit": {"kind": "money", "code": "GBP"},
        "evidence": "enough",
        "unseen": ["browse"],
        "generation": "3f9c0a1b22cd",
        "cause": {
            "type": "purchase",
            "event_id": "e1",
            "topic": "events.purchase",
            "partition": 0,
            "offset": 41,
        },
    }
    UserValue.model_validate(made)
    return made


async def publish(to: Settings, worth: dict[str, float], clock: str = "wall") -> None:
    """Write the users' documents, and `lv:meta`."""
    store = RedisStore(to.store)
    meta = Meta(
        schema=1,
        partitions=to.kafka.partitions,
        partitioner=to.kafka.partitioner,
        unit={"kind": "money", "code": "GBP"},
        horizons=("d7", "d30", "d90"),
        store="main",
        clock=clock,
    )
    try:
        await store.set_meta(meta)
        for p in range(to.kafka.partitions):
            claim = await store.claim(p)
            writes = [
                Write(user, b"state", json.dumps(document(user, value)).encode(), value)
                for user, value in worth.items()
                if partition(user, to.kafka.partitions, to.kafka.partitioner) == p
            ]
            mark = Watermark(
                positions=(1, 1, 1),
                clocks=(AS_OF_MS, AS_OF_MS + 86_400_000, 0),
                identity=Identity(1, claim.token),
                log_id="log",
                marks=("", "", ""),
                fingerprint="f",
                generation="g",
            )
            done = await store.commit(p, Commit(claim.token, None, mark, writes))
            assert done is CommitOutcome.OK
    finally:
        await store.close()
