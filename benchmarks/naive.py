"""The baseline of `make bench`: a Faust worker as one would first write it.

One event at a time, as Faust's tutorial has it: JSON decoded, features in a Redis hash (HGETALL,
then HSET of what changed), the same generation's graph run for one row, the value sent to an
output topic, offsets committed by Faust. Decayed counts and sums, recencies and totals are kept
and put into the columns of the generation that hold them; the others stay 0.

It does less than the product: no tail and no order of event time, no deduplication, no
transactions, no carry, one query time instead of twelve, no quantiles; and it takes what is cheap:
hiredis, onnxruntime called directly. So the ratio to it is on the low side. Run as
`faust -A benchmarks.naive worker`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faust
import numpy as np
import redis.asyncio

from featurestore.features import FEATURES
from scoring.generation import load
from scoring.serving import session

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
KINDS = ("browse", "purchase", "interaction")
HALF_LIVES_S = (14 * 86400.0, 45 * 86400.0, 120 * 86400.0)
DAY_S = 86400.0


class Model:
    """The generation's graph, called for one row; `prior` has none, then a mean is returned."""

    def __init__(self, folder: str) -> None:
        self.columns = {feature.name: at for at, feature in enumerate(FEATURES)}
        path = Path(folder) / "model.onnx"
        self._graph = session(path.read_bytes()) if folder and path.exists() else None
        if self._graph is not None:
            found = load({p.name: p.read_bytes() for p in Path(folder).iterdir()})
            self.columns = {name: at for at, name in enumerate(found.manifest.features)}
            self._carry = np.zeros((1, found.model.carry_size), np.float32)

    def __call__(self, row: Any) -> list[float]:
        if self._graph is None:
            return [float(row.mean())]
        expected = self._graph.run(["expected"], {"carry": self._carry, "features": row})[0]
        return [float(value) for value in expected.ravel()]


model = Model(os.environ.get("NAIVE_GENERATION", ""))


def fold(held: Mapping[Any, Any], event: dict[str, Any]) -> dict[str, float]:
    """The fields of a user's hash after one event."""
    kind = str(event["type"])
    now = float(event["event_time"]) / 1000
    amount = float(event.get("amount") or 0)
    user = {name.decode(): float(value) for name, value in held.items()}
    passed = max(0.0, now - user.get("at_event", now))
    user["at_event"] = user[f"at_{kind}"] = now
    user.setdefault("at_first", now)
    user[f"{kind}s"] = user.get(f"{kind}s", 0) + 1
    user["orders"] = user.get("orders", 0) + (amount > 0)
    user["spent"] = user.get("spent", 0) + amount
    for number, half_life in enumerate(HALF_LIVES_S, 1):
        faded = 0.5 ** (passed / half_life)
        for one in KINDS:
            name = f"decayed_{one}s_{number}"
            user[name] = user.get(name, 0) * faded + (one == kind)
        name = f"decayed_purchase_value_{number}"
        user[name] = user.get(name, 0) * faded + amount
    return user


def features(user: dict[str, float]) -> Any:
    """One row of features, as of the last event."""
    columns = model.columns
    row = np.zeros((1, 1, len(columns)), np.float32)
    now = user["at_event"]
    for name, value in user.items():
        if name in columns:
            row[0, 0, columns[name]] = math.log1p(value)
    for kind in KINDS:
        since = (now - user[f"at_{kind}"]) / DAY_S if f"at_{kind}" in user else 3650.0
        row[0, 0, columns[f"since_{kind}"]] = math.log1p(since)
    row[0, 0, columns["tenure"]] = math.log1p((now - user["at_first"]) / DAY_S)
    return row


@app.agent(events)
async def score(stream: Any) -> None:
    """Fold, score and publish each event by itself."""
    async for raw in stream:
        event = json.loads(raw)
        key = "naive:" + event["user_id"]
        user = fold(await store.hgetall(key), event)
        await store.hset(key, mapping=user)  # type: ignore[arg-type]
        document = {
            "user_id": event["user_id"],
            "as_of": user["at_event"],
            "expected": model(features(user)),
            "orders": user["orders"],
            "spent": round(user["spent"], 2),
            "at": time.time(),
        }
        await scores.send(key=event["user_id"].encode(), value=json.dumps(document).encode())
