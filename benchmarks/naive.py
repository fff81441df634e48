"""The baseline of `make bench`: a Faust worker as one would first write it.

One event at a time: JSON decoded by Faust, features in a Redis hash (HGETALL, HSET), the same
generation's model called for one row, the value sent to an output topic. No tail, no
deduplication, no transactions, one query time instead of ten: it does less than the product and
says so. Run as `faust -A benchmarks.naive worker`.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import faust
import numpy as np
import redis.asyncio

from featurestore.features import FEATURES
from scoring.generation import load

SOURCE = os.environ.get("NAIVE_TOPIC", "bench.naive")
app = faust.App(
    "bench-naive",
    broker="kafka://" + os.environ.get("LIVEVALUE_KAFKA__BOOTSTRAP", "127.0.0.1:9092"),
    web_enabled=False,
    topic_allow_declare=False,
    topic_disable_leader=True,
    consumer_auto_offset_reset="earliest",
    datadir=os.environ.get("NAIVE_DATA", ".naive"),
)
events = app.topic(SOURCE, value_type=bytes, value_serializer="raw", key_serializer="raw")
scores = app.topic(SOURCE + ".scores", value_serializer="raw", key_serializer="raw")
store = redis.asyncio.Redis.from_url(
    os.environ.get("LIVEVALUE_STORE__URL", "redis://127.0.0.1:6379/0")
)
HALF_LIVES_S = (14 * 86400.0, 45 * 86400.0, 120 * 86400.0)
_model: Any = None


def model() -> Any:
    """The generation whose folder NAIVE_GENERATION names, loaded once."""
    global _model
    if _model is None:
        folder = Path(os.environ["NAIVE_GENERATION"])
        found = load({p.name: p.read_bytes() for p in folder.iterdir()})
        _model = found.model
    return _model


@app.agent(events)
async def score(stream: Any) -> None:
    """Fold, score and publish each event by itself."""
    async for raw in stream:
        event = json.loads(raw)
        key = "naive:" + event["user_id"]
        held = await store.hgetall(key)
        now = float(event["event_time"]) / 1000
        last = float(held.get(b"last", now))
        fresh: dict[str, float] = {"last": now, "first": float(held.get(b"first", now))}
        amount = float(event.get("amount", 0) or 0)
        for half_life in HALF_LIVES_S:
            faded = 0.5 ** (max(0.0, now - last) / half_life)
            for name, gain in (("n", 1.0), ("m", amount)):
                field = f"{name}{half_life:.0f}"
                fresh[field] = float(held.get(field.encode(), 0)) * faded + gain
        fresh["orders"] = float(held.get(b"orders", 0)) + (amount > 0)
        fresh["spent"] = float(held.get(b"spent", 0)) + amount
        await store.hset(key, mapping=fresh)
        row = np.zeros((1, 1, len(FEATURES)), np.float32)
        row[0, 0, : len(fresh)] = np.log1p(np.abs(list(fresh.values())))
        served = model()
        value = served.predict(np.zeros((1, served.carry_size), np.float32), row)
        document = {
            "user_id": event["user_id"],
            "as_of": now,
            "expected": [float(v) for v in value.expected[0, 0]],
            "at": time.time(),
        }
        await scores.send(key=event["user_id"].encode(), value=json.dumps(document).encode())
