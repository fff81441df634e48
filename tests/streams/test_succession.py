"""A store built aside is taken over at equal positions; readers see one fold or the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition  # type: ignore[import-untyped]

from featurestore.backends.memory import MemoryStore
from featurestore.errors import StoreError
from featurestore.store import Claim, Commit, CommitOutcome
from livevalue.embedded import Stack
from scoring.generation import Generation, prior
from streams import sweep, topics
from streams.backfill import backfill_files, backfill_kafka, builder
from streams.delivery import RawRecord
from streams.gap import LogReader
from streams.log import FileLog
from streams.replay import digest_of
from streams.topics import log_id
from tests.streams.owning import CLEAN, START_MS, Owning, one_partition


@pytest.fixture
async def owning(stack: Stack, topic_prefix: str) -> AsyncIterator[Owning]:
    async with Owning(one_partition(stack.bootstrap, topic_prefix)) as made:
        yield made


async def build_aside(owning: Owning, name: str) -> MemoryStore:
    aside = MemoryStore(name, owning.backing)
    pipeline = builder(aside, owning.settings, prior(owning.settings.model))
    ids = log_id(owning.settings, await asyncio.to_thread(topics.topic_ids, owning.settings))
    await backfill_kafka(pipeline, [0], ids)
    return aside


def followed(owning: Owning) -> dict[str, MemoryStore]:
    """Stores by name, which owners take over where they are announced."""
    stores = {"main": owning.store}

    async def find(name: str) -> Generation:
        return prior(owning.settings.model)

    owning.follow(stores.__getitem__, find)
    return stores


async def test_a_store_built_aside_is_flipped_to_while_events_arrive_and_back_again(
    owning: Owning,
) -> None:
    stores = followed(owning)
    owner = owning.own()
    await owning.send(200)
    await owning.settle()
    stores["aside"] = await build_aside(owning, "aside")
    await owning.send(150)
    await owning.settle()
    published = len(await owning.scores())

    await owning.store.set_next(0, "aside")
    await owning.send(100)
    await owning.until(lambda: owning.backing.partition(0).active == "aside")
    await owning.send(60)
    await owning.settle()
    assert await owning.store.next(0) is None
    # Every user was published once more under the other store.
    await owning.until_swept(published + 40)
    assert await owning.audit() == CLEAN
    assert (await stores["aside"].load(0, [])).watermark is not None
    await says_what_the_swap_did(owning)

    await stores["aside"].set_next(0, "main")
    await owning.until(lambda: owning.backing.partition(0).active == "main")
    published = len(await owning.scores())
    await owning.send(60)
    await owning.settle()
    await owning.until_swept(published + 40)
    assert await owning.audit() == CLEAN
    assert not owner.halted


async def test_what_was_read_lately_goes_with_the_flip(owning: Owning) -> None:
    stores = followed(owning)
    owning.own()
    await owning.send(200)
    await owning.settle()
    stores["aside"] = await build_aside(owning, "aside")
    await owning.send(50)
    await owning.settle()
    before = (await owning.store.load(0, [])).watermark
    await owning.store.set_next(0, "aside")
    await owning.until(lambda: owning.backing.partition(0).active == "aside")
    # The builder has read these positions again, perhaps of another leader.
    after = (await stores["aside"].load(0, [])).watermark
    assert before is not None and after is not None
    assert after.positions == before.positions == (250,)
    assert set(before.trails[0].split(" ")) <= set(after.trails[0].split(" "))


async def test_a_flip_back_takes_away_what_the_other_store_alone_has_said(
    owning: Owning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "PAGE", 25)  # several pages of each walk
    stores = followed(owning)
    owner = owning.own()
    await owning.send(80)
    await owning.settle()
    # The other store has a base of files with users of whom the log knows nothing.
    old = tmp_path / "old.jsonl"
    strangers = [f"old{n}" for n in range(60)]
    old.write_text("".join(purchase_line(user) for user in strangers))
    stores["aside"] = aside = MemoryStore("aside", owning.backing)
    pipeline = builder(aside, owning.settings, prior(owning.settings.model))
    await backfill_files(pipeline, FileLog([old], owning.settings), [old], START_MS)
    await build_aside(owning, "aside")
    published = len(await owning.scores())

    await owning.store.set_next(0, "aside")
    await owning.until(lambda: owning.backing.partition(0).active == "aside")
    await owning.until_swept(published + 40 + 60)
    assert len(await owning.store.top(0, 1000)) == 40 + 60
    assert await aside.document(0, "old7") is not None

    await aside.set_next(0, "main")
    await owning.until(lambda: owning.backing.partition(0).active == "main")
    said = owning.backing.partition(0).documents
    await owning.until(lambda: not said.keys() & set(strangers))
    await owning.settle()
    assert len(await owning.store.top(0, 1000)) == 40
    # Readers of the topic are told, too, and nobody else lost anything.
    assert await owning.audit() == CLEAN
    assert not owner.halted


def purchase_line(user: str) -> str:
    """One order of a user before anything was sent."""
    event = {"type": "purchase", "event_id": user, "user_id": user, "amount": "3"}
    return json.dumps({**event, "event_time": START_MS - 86_400_000}) + "\n"


async def test_an_end_told_while_a_claim_asks_for_it_is_not_forgotten(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = owning.own()
    await owning.send(40)
    await owning.settle()
    await first.close(drain=True)
    read, told = LogReader.these, asyncio.Event()

    async def later(
        self: LogReader, tp: TopicPartition, offsets: Iterable[int]
    ) -> dict[int, RawRecord]:
        # The claim has asked for the ends; now more arrives and is told, once.
        if not told.is_set():
            await owning.send(30)
            told.set()
        return await read(self, tp, offsets)

    monkeypatch.setattr(LogReader, "these", later)
    owning.own()
    await owning.until(told.is_set)
    await owning.settle(10.0)
    assert await owning.audit() == CLEAN


async def test_a_roll_back_past_a_flip_publishes_again_what_the_other_store_has_said(
    owning: Owning,
) -> None:
    stores = followed(owning)
    owner = owning.own()
    await owning.send(200)
    await owning.settle()
    await owning.send(1)  # the entry that the outbox keeps names one user alone
    await owning.settle()
    stores["aside"] = await build_aside(owning, "aside")
    kept = owning.backing.snapshot()
    published = len(await owning.scores())
    await owning.store.set_next(0, "aside")
    await owning.until(lambda: owning.backing.partition(0).active == "aside")
    await owning.until_swept(published + 40)

    owning.backing.restore(kept)
    await owning.send(1)  # touches one user; what the sweep said of the others is undone, too
    for _ in range(200):
        if await owning.audit() == CLEAN and len(await owning.scores()) >= published + 80:
            break
        await asyncio.sleep(0.1)
    assert await owning.audit() == CLEAN
    assert owning.backing.partition(0).active == "main" and not owner.halted


async def says_what_the_swap_did(owning: Owning) -> None:
    """A swept document's `previous` is what was said before, and no time goes back."""
    last: dict[str, dict[str, Any]] = {}
    swept = 0
    for record in await owning.scores():
        document: dict[str, Any] = json.loads(record.value or b"")
        before = last.get(document["user_id"])
        if before is not None:
            assert document["as_of"] >= before["as_of"]
            # Commits of one transaction publish only a user's last document.
            assert before["revision"] <= document["previous"]["revision"] < document["revision"]
        swept += document["cause"]["type"] == "generation"
        last[document["user_id"]] = document
    assert swept >= 40


async def test_a_store_that_does_not_exist_is_not_flipped_to_and_work_goes_on(
    owning: Owning,
) -> None:
    async def find(name: str) -> Generation:
        return prior(owning.settings.model)

    owning.follow(lambda name: MemoryStore(name, owning.backing), find)
    owner = owning.own()
    await owning.send(50)
    await owning.settle()
    await owning.store.set_next(0, "nowhere")
    await owning.send(50)
    await asyncio.sleep(1)  # several looks for a successor
    await owning.settle()
    assert await owning.store.active(0) == "main"
    assert not owner.halted
    assert await owning.audit() == CLEAN
    document = await owning.store.document(0, "u1")
    assert document is not None and json.loads(document)["user_id"] == "u1"


async def test_trouble_of_the_other_store_halts_nothing_and_it_is_taken_over_later(
    owning: Owning,
) -> None:
    stores = followed(owning)
    owner = owning.own()
    await owning.send(100)
    await owning.settle()
    stores["aside"] = aside = Fickle("aside", owning.backing)
    await build_aside(owning, "aside")
    await owning.send(50)
    await owning.settle()
    aside.troubled = True
    await owning.store.set_next(0, "aside")
    await owning.until(lambda: aside.refused >= 2)
    await owning.send(50)
    await owning.settle()
    assert not owner.halted and owning.backing.partition(0).active == "main"
    # Somebody claimed it meanwhile: the takeover that was ready is begun again.
    aside.troubled = False
    await aside.claim(0)
    await owning.send(50)
    await owning.until(lambda: owning.backing.partition(0).active == "aside")
    await owning.settle()
    assert not owner.halted
    assert await owning.audit() == CLEAN


class Fickle(MemoryStore):
    """A store that refuses commits while it is troubled, as one that is being dropped does."""

    troubled = False
    refused = 0

    async def commit(self, partition: int, commit: Commit) -> CommitOutcome:
        """Refuse, or commit."""
        if self.troubled:
            self.refused += 1
            raise StoreError("this store was dropped halfway")
        return await super().commit(partition, commit)


class Moved(MemoryStore):
    """A store that another builder moves just before we claim it."""

    other: Callable[[], Awaitable[int]] | None = None

    async def claim(self, partition: int) -> Claim:
        """Let the other builder go first, once."""
        other, self.other = self.other, None
        if other is not None:
            await other()
        return await super().claim(partition)


async def test_a_builder_reads_on_from_where_its_claim_found_the_store(owning: Owning) -> None:
    owner = owning.own()
    await owning.send(80)
    await owning.settle()
    aside = Moved("aside", owning.backing)
    ids = log_id(owning.settings, await asyncio.to_thread(topics.topic_ids, owning.settings))
    settings, made = owning.settings, prior(owning.settings.model)

    async def build(store: MemoryStore) -> int:
        return (await backfill_kafka(builder(store, settings, made), [0], ids)).events

    assert await build(aside) == 80
    await owning.send(60)
    await owning.settle()
    twin = MemoryStore("aside", owning.backing)
    aside.other = lambda: build(twin)
    assert await build(aside) == 0, "the other builder had folded all of it"
    assert not owner.halted
    live = await digest_of(owning.store, [0])
    assert (await digest_of(aside, [0])).hex() == live.hex()
