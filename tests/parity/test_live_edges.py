"""Edges and words folded by a live worker, and generations that read them promoted under it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is in the extra `train`")

from featurestore.settings import FeatureSettings
from livevalue.embedded import Stack
from livevalue.sources import Source
from scoring.generation import Generation
from scoring.inputs import SOCIAL_NAMES
from scoring.interests import INTEREST_NAMES
from scoring.settings import TrainingSettings
from scoring.social import NEAR_NAMES
from scoring.training import loop
from scoring.training.examples import ExampleBuilder, Examples
from scoring.zoo import graph
from streams.settings import Settings
from streams.stores import Stores
from tests.e2e.deployment import START_MS, Deployment, send_all
from tests.parity.nasty import TYPES
from tests.parity.onstack import command, generations, serve, shaped, swept, verified
from tests.parity.playing import generation

pytestmark = pytest.mark.long

USERS, DAYS = 50, 150
DAY_MS = 86_400_000
BEYOND = {"degree", *INTEREST_NAMES[:2], *NEAR_NAMES[:3]}


def social_log(first: int, last: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(source, event) of some days in order of time: friends, words, orders."""
    rng = random.Random(first)
    for n in range(first * 20, last * 20):
        user, source = rng.randrange(USERS), rng.choices((0, 1, 2), (40, 25, 35))[0]
        event: dict[str, Any] = {
            "event_id": f"e{n}",
            "user_id": f"u{user}",
            "event_time": START_MS + n * DAY_MS // 20,
            "category": rng.choice(("gold", "socks", "pens")) if user % 3 else "gold",
        }
        if source == 0:
            event["query"] = rng.choice(("ring", "red ring", "paper"))
        elif source == 1:
            event["amount"] = f"{rng.lognormvariate(2 + user % 4, 0.3):.2f}"
        else:
            event["action"] = rng.choice(("follow", "message", "share"))
            event["target_user_id"] = f"u{(user + rng.choice((4, 8, 12))) % USERS}"
        yield source, event


def examples(settings: Settings, file: Path) -> Examples:
    """Rows to train on: of the days sent, from a file, each event arrived at its own time."""
    events = [{"type": TYPES[source], **event} for source, event in social_log(0, DAYS)]
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    cuts = START_MS + np.arange(30, 60, 10) * DAY_MS
    horizons = [days * 86_400 for days in settings.model.horizons_days]
    builder = ExampleBuilder(settings.features, settings.kafka.sources, horizons, cuts, START_MS)
    for partition, batch in Source([str(file)], settings).batches():
        builder.add(partition, batch)
    return builder.finish()


def net(rows: Examples) -> Generation:
    how = TrainingSettings(family="mingru", width=8, epochs=2, least_orders=20)
    return loop.generation(loop.train(rows, how), rows)


async def published(settings: Settings, made: Generation) -> str:
    stores = Stores(settings)
    try:
        return await stores.registry().publish(made)
    finally:
        await stores.close()


def expected(deployment: Deployment) -> dict[str, float]:
    """Of each user at the longest horizon, by the documents."""
    found = {}
    keys: Any = deployment.redis.keys("lv:{*}:v:*")
    for key in keys:
        document: Any = deployment.redis.get(key)
        found[key.decode().rsplit(":", 1)[1]] = json.loads(document)["values"]["d90"]["expected"]
    return found


def test_a_worker_with_edges_and_interests_serves_what_a_replay_of_its_log_gives(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    settings = shaped(stack, topic_prefix, mixed=False, partitions=2).model_copy(
        update={"features": FeatureSettings(social=True, interests=True)}
    )
    with Deployment(settings, tmp_path) as deployment:
        serve(settings, generation())
        send_all(deployment, list(social_log(0, DAYS)))
        worker = deployment.start()
        deployment.settle()
        rows = examples(settings, tmp_path / "log.jsonl")
        assert rows.table is not None
        said = [expected(deployment)]
        for turn, made in enumerate((graph.train(rows), net(rows))):
            assert {*made.manifest.features} >= {*SOCIAL_NAMES, *INTEREST_NAMES, *NEAR_NAMES}
            assert {*made.manifest.trained_features} >= BEYOND, made.manifest.family
            name = asyncio.run(published(settings, made))
            command(deployment, "promote", name[:12])
            swept(deployment, name)
            # more of it while the generation serves
            send_all(deployment, list(social_log(DAYS + turn, DAYS + turn + 1)))
            deployment.settle()
            found = verified(settings)
            assert (found["different"], found["users"]) == (0, USERS), found
            assert set(generations(deployment).values()) == {name[:12]}
            said.append(expected(deployment))
        assert all(len(values) == USERS for values in said)
        assert said[0] != said[1] != said[2]
        assert worker.exit_code is None
        assert not worker.lines("partition forgotten")
