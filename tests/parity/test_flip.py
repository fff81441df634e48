"""Another generation through a live worker under load: built aside, taken over, and back."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from pathlib import Path

import pytest

from featurestore.errors import StoreError
from livevalue.embedded import Stack
from livevalue.jobs.generating import list_generations, promote, rollback
from livevalue.jobs.storing import drop, flip, list_stores
from livevalue.sources import FileOptions
from scoring.generation import prior
from streams.errors import Stale
from streams.stores import Stores
from tests.e2e.deployment import Deployment, some_events
from tests.parity.load import Load
from tests.parity.onstack import generations, live, replayed, serve, shaped, swept, verified
from tests.parity.playing import generation

USERS = 60


def quiet(text: str) -> None:
    """Nobody listens."""


async def published(deployment: Deployment) -> str:
    stores = Stores(deployment.settings)
    try:
        return await stores.registry().publish(prior(deployment.settings.model))
    finally:
        await stores.close()


@pytest.mark.parametrize("partitions", [3])
def test_a_promoted_generation_takes_over_under_load_and_a_rollback_brings_the_first_back(
    stack: Stack, topic_prefix: str, tmp_path: Path, partitions: int
) -> None:
    settings = shaped(stack, topic_prefix, mixed=False, partitions=partitions)
    with Deployment(settings, tmp_path) as deployment:
        first = serve(settings, generation())
        for source, event in some_events(1500, USERS):
            deployment.send(source, event)
        deployment.flush()
        worker = deployment.start()
        deployment.settle()
        assert set(generations(deployment).values()) == {first[:12]}
        second = asyncio.run(published(deployment))
        with Load(deployment, USERS):
            done = asyncio.run(promote(settings, second[:12], [], FileOptions(), quiet))
            assert done["generation"] == second
            swept(deployment, second)
            began = time.monotonic()
            back = asyncio.run(rollback(settings, quiet))
            assert back["generation"] == first
            flipped_s = time.monotonic() - began
            swept(deployment, first)
            time.sleep(1.0)
            assert set(generations(deployment).values()) == {first[:12]}
        assert flipped_s < 5, flipped_s
        deployment.settle()
        assert live(settings)["digest"] == replayed(settings, "kafka")["digest"]
        found = verified(settings)
        assert (found["different"], found["users"]) == (0, USERS), found
        assert worker.exit_code is None
        assert not worker.lines("partition forgotten")

        # A subscriber saw the generations one after the other, never mixed, in rising revisions.
        seen: dict[str, list[str]] = defaultdict(list)
        revisions: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for record in deployment.read(settings.kafka.scores):
            document = json.loads(record.value)
            if seen[record.key][-1:] != [document["generation"]]:
                seen[record.key].append(document["generation"])
            revisions[record.key].append((document["revision"], document["as_of"]))
        assert set(map(tuple, seen.values())) == {(first[:12], second[:12], first[:12])}
        for of_user in revisions.values():
            assert of_user == sorted(of_user)
            assert len({revision for revision, _ in of_user}) == len(of_user)

        names = asyncio.run(list_stores(settings))
        assert names["active"] == "main"
        aside = next(s["name"] for s in names["stores"] if not s["active"])
        champion = [g["id"] for g in asyncio.run(list_generations(settings))["generations"]]
        assert set(champion) == {first, second}
        with pytest.raises(StoreError, match="serves readers"):
            asyncio.run(drop(settings, "main"))
        assert asyncio.run(drop(settings, aside))["keys"] > USERS
        assert [s["name"] for s in asyncio.run(list_stores(settings))["stores"]] == ["main"]
        with pytest.raises(Stale, match="there is no store"):
            asyncio.run(flip(settings, aside, quiet))


def test_partitions_without_a_record_are_flipped_too(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    settings = shaped(stack, topic_prefix, mixed=True, partitions=8)
    with Deployment(settings, tmp_path) as deployment:
        serve(settings, generation())
        event = {"type": "purchase", "event_id": "a", "user_id": "ada", "amount": "2.50"}
        deployment.send(0, {**event, "event_time": 1_700_000_000_000})
        deployment.flush()
        deployment.start()
        deployment.settle()
        second = asyncio.run(published(deployment))
        asyncio.run(promote(settings, second, [], FileOptions(), quiet))
        swept(deployment, second)
        for n in range(20):
            user = f"new{n}"
            fresh = {**event, "user_id": user, "event_id": user, "event_time": 1_700_000_100_000}
            deployment.send(0, fresh)
        deployment.flush()
        deployment.settle()
        assert len(generations(deployment)) == 21
        assert set(generations(deployment).values()) == {second[:12]}
