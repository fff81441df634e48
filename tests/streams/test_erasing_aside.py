"""An erasure reaches the stores that are kept for going back, before anybody feeds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import redis.asyncio

from featurestore.backends.memory import Backing, MemoryStore
from featurestore.backends.redis import RedisStore
from featurestore.columns import EventBatch
from featurestore.errors import StoreError
from featurestore.fold_settings import FoldSettings
from featurestore.state import States, history
from featurestore.store import Claim, Commit, CommitOutcome, Loaded, Watermark
from livevalue.embedded import Stack
from scoring.generation import prior
from scoring.scorer import Scorer
from streams.erasing import forget_elsewhere
from streams.pipeline import Pipeline, Positions
from streams.replay import digest_of
from streams.row import split
from streams.settings import Settings
from tests.contract.deployments import mark, write
from tests.featurestore.logs import HOUR_MS, START_MS, Record, batch_of
from tests.featurestore.test_fold_rules import event

ERASED = Record(0, 90, "ada", START_MS + 4 * HOUR_MS, None)
PAST = [
    Record(0, i, user, START_MS + i * HOUR_MS, event(i, i, value=1_000_000))
    for i, user in enumerate(["ada", "bob", "ada"], 1)
]


class Side:
    """One store with its pipeline, fed by hand."""

    def __init__(self, name: str, backing: Backing, *, serves: bool) -> None:
        settings = Settings()
        scorer = Scorer(prior(settings.model), settings.model, settings.features)
        self.store = MemoryStore(name, backing)
        self.pipeline = Pipeline(self.store, scorer, settings, publishes=serves)
        self.claim: Claim | None = None
        self.watermark: Watermark | None = None
        self.position = 0

    async def take(self, records: Sequence[Record]) -> None:
        if self.claim is None:
            self.claim = await self.store.claim(0)
        self.position += len(records)
        sources = len(self.pipeline.settings.kafka.sources)
        after = Positions((self.position,) * sources, ("",) * sources, "log", (False,) * sources)
        batch: EventBatch = batch_of(records)
        done = await self.pipeline.process(0, self.claim.token, self.watermark, after, batch, [])
        assert done.outcome == "OK"
        self.watermark = done.watermark

    async def states(self, *users: str) -> States:
        rows = (await self.store.load(0, users)).states
        return States.decode(users, [None if row is None else split(row)[0] for row in rows])


async def test_an_erased_users_history_lies_in_no_store_and_the_other_store_ends_the_same() -> None:
    backing = Backing()
    main, aside = Side("main", backing, serves=True), Side("aside", backing, serves=False)
    await main.take(PAST)
    await aside.take(PAST)
    assert history(await aside.states("ada"))["orders"].tolist() == [2]

    await main.take([ERASED])
    forgotten = await aside.states("ada", "bob")
    assert forgotten.known().tolist() == [False, True]
    assert forgotten.erased_ms.tolist()[0] == ERASED.record_ms
    assert not len(forgotten.tail.row(0)) and not len(forgotten.ring.row(0))

    # What it had not read yet lies partly before the erasure, and partly after it.
    rest = [
        Record(0, 91, "ada", START_MS + 3 * HOUR_MS, event(3, 91, value=5)),
        Record(0, 92, "ada", START_MS + 9 * HOUR_MS, event(9, 92, value=7)),
    ]
    await main.take(rest)
    await aside.take([rest[0], ERASED, rest[1]])
    assert (await aside.states("ada")).encode() == (await main.states("ada")).encode()
    assert (await digest_of(aside.store, [0])).hex() == (await digest_of(main.store, [0])).hex()


async def test_a_builder_erases_in_its_own_store_alone() -> None:
    backing = Backing()
    main, aside = Side("main", backing, serves=True), Side("aside", backing, serves=False)
    kept = Side("kept", backing, serves=False)
    await main.take(PAST)
    await kept.take(PAST)
    await aside.take([*PAST, ERASED])
    for side in (main, kept):
        assert history(await side.states("ada"))["orders"].tolist() == [2]
    await main.take([ERASED])
    assert await main.store.document(0, "ada") is None


async def test_of_two_erasures_in_a_batch_the_later_one_holds_aside_too() -> None:
    backing = Backing()
    main, aside = Side("main", backing, serves=True), Side("aside", backing, serves=False)
    await main.take(PAST)
    await aside.take(PAST)
    earlier = replace(ERASED, record_ms=ERASED.record_ms - HOUR_MS)
    await main.take([ERASED, earlier])
    assert (await aside.states("ada")).erased_ms.tolist() == [ERASED.record_ms]


async def test_nothing_that_a_model_remembers_of_an_erased_user_stays_aside() -> None:
    backing = Backing()
    main, aside = Side("main", backing, serves=True), Side("aside", backing, serves=False)
    await main.take(PAST)
    await aside.take(PAST)
    assert split((await aside.store.load(0, ["ada"])).states[0] or b"")[1]
    await main.take([ERASED])
    assert split((await aside.store.load(0, ["ada"])).states[0] or b"")[1] == b""


async def test_an_erasure_alone_in_its_batch_leaves_the_user_what_came_after_it() -> None:
    main = Side("main", Backing(), serves=True)
    await main.take(PAST)
    await main.take([replace(ERASED, record_ms=START_MS + 2 * HOUR_MS)])
    assert history(await main.states("ada"))["orders"].tolist() == [1]
    document = json.loads(await main.store.document(0, "ada") or b"{}")
    assert (document["cause"]["type"], document["history"]["orders"]) == ("erase", 1)


async def test_a_damaged_state_aside_is_forgotten_as_well_and_holds_up_nobody() -> None:
    backing = Backing()
    main, aside = Side("main", backing, serves=True), Side("aside", backing, serves=False)
    await main.take(PAST)
    await aside.take(PAST)
    backing.partition(0).folds["aside"].states["ada"] = b"damaged"
    await main.take([ERASED, replace(ERASED, user="bob")])
    assert (await main.states("ada", "bob")).known().tolist() == [False, False]
    assert (await aside.states("ada", "bob")).known().tolist() == [False, False]


class Refusing(MemoryStore):
    """A store aside that cannot be read, as one with a spoilt watermark cannot."""

    async def load(self, partition: int, users: Sequence[str]) -> Loaded:
        raise StoreError("the watermark is none")

    def sibling(self, name: str) -> MemoryStore:
        return Refusing(name, self.backing) if name == "aside" else super().sibling(name)


async def test_trouble_of_a_store_aside_is_said_and_does_not_hold_up_the_erasure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backing = Backing()
    main, aside = Side("main", backing, serves=True), Side("aside", backing, serves=False)
    await main.take(PAST)
    await aside.take(PAST)
    main.store.sibling = Refusing("main", backing).sibling  # type: ignore[method-assign]
    await main.take([ERASED])
    assert (await main.states("ada")).known().tolist() == [False]
    assert "drop it" in caplog.text


async def test_a_store_that_is_being_dropped_does_not_hold_up_an_erasure(stack: Stack) -> None:
    url = stack.redis_url.rsplit("/", 1)[0] + "/13"
    store = RedisStore.at(url, prefix="erasing")
    try:
        for name, publishes in (("main", True), ("aside", False)):
            side = store.sibling(name)
            token = (await side.claim(0)).token
            step = Commit(token, None, mark(1, token), [write("ada")], publishes=publishes)
            assert await side.commit(0, step) == CommitOutcome.OK
        # A drop of a large store is long under way while an erasure comes.
        await redis.asyncio.from_url(url).hset("erasing:aside:{0}:wm", "dropping", "drop")
        settings = Settings()
        fold_settings = FoldSettings.of(settings.features, settings.kafka.sources)
        await forget_elsewhere(store, 0, batch_of([ERASED]), fold_settings)
    finally:
        await store.close()
