"""What tells a roll-back of Redis from progress: the identity of a commit, both halves of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from featurestore.store import Commit, CommitOutcome, Identity, OutboxEntry
from livevalue.embedded import Stack
from streams import held, publish
from streams.emit import Published
from streams.errors import PublishError
from streams.publish import Publisher
from streams.rollback import unpublished
from tests.streams.owning import CLEAN, Owning, one_partition


def published(seq: int, writer: str) -> Published:
    return Published(Identity(seq, writer), (5,), "log")


def test_what_follows_the_published_entry_is_to_be_published() -> None:
    outbox = [OutboxEntry(Identity(n, "w"), (f"u{n}",)) for n in (6, 7, 8)]
    assert unpublished(outbox, None) == outbox
    assert unpublished(outbox, Identity(7, "w")) == outbox[2:]
    assert unpublished(outbox, Identity(8, "w")) == []


def test_an_entry_of_the_same_number_by_another_writer_is_a_roll_back() -> None:
    # Two masters at once: each goes on from 6, and 7 of the one that lost was published.
    outbox = [OutboxEntry(Identity(6, "w"), ("ada",)), OutboxEntry(Identity(7, "other"), ("bob",))]
    assert unpublished(outbox, Identity(7, "w")) is None
    assert unpublished(outbox, Identity(9, "other")) is None


@pytest.fixture
async def owning(
    stack: Stack, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Owning]:
    monkeypatch.setattr(held, "REFRESH_USERS", 6)
    monkeypatch.setattr(publish, "_USERS", 12)
    async with Owning(one_partition(stack.bootstrap, topic_prefix)) as made:
        made.own()
        await made.send(10)
        await made.settle()
        yield made


async def test_a_roll_back_of_many_users_is_made_good_in_many_transactions(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as long as the broker waits for, and none of them is a stall."""
    before, transact, sent = owning.backing.snapshot(), Publisher._transact, list[int]()
    await owning.send(40)
    await owning.settle()

    async def counted(self: Publisher, documents: dict[str, bytes], *others: Any) -> None:
        sent.append(len(documents))
        await transact(self, documents, *others)

    monkeypatch.setattr(Publisher, "_transact", counted)
    owning.backing.restore(before)
    await owning.until(lambda: owning.metrics.rolled_back._value.get() == 1)
    await owning.settle()
    assert sum(sent) == 40 and max(sent) <= 12
    assert owning.owner is not None and time.monotonic() - owning.owner.got_on_s < 5
    assert await owning.audit() == CLEAN
    await owning.send(5)
    await owning.settle()
    assert owning.metrics.rolled_back._value.get() == 1
    assert await owning.audit() == CLEAN


def at_the_second(owning: Owning, monkeypatch: pytest.MonkeyPatch, comes: object) -> list[int]:
    """The second transaction from now on fails, and Redis is another; -> how many each sends."""
    transact, sent = Publisher._transact, list[int]()

    async def breaks(self: Publisher, documents: dict[str, bytes], *others: Any) -> None:
        sent.append(len(documents))
        if len(sent) == 2:
            owning.backing.restore(comes)
            raise PublishError("the second of them")
        await transact(self, documents, *others)

    monkeypatch.setattr(Publisher, "_transact", breaks)
    return sent


async def test_what_was_said_of_a_roll_back_in_part_is_not_said_again_under_its_revisions(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis goes back once more, behind all that tells of it."""
    before = owning.backing.snapshot()
    await owning.producer.send_and_wait(
        owning.settings.kafka.sources[0], b"{bad", key=b"u1", partition=0
    )
    await owning.send(40)
    await owning.settle()

    sent = at_the_second(owning, monkeypatch, before)
    owning.backing.restore(before)
    await owning.until(lambda: owning.metrics.rolled_back._value.get() == 2)
    await owning.settle()
    # And everybody, since it may be another Redis that went on; who waits already is said once.
    assert sent[0] == 12 and 40 < sum(sent[2:]) <= 80
    assert await owning.audit() == CLEAN
    assert len(await owning.read(owning.settings.kafka.dlq)) == 1


async def test_who_is_asked_to_stop_amid_a_roll_back_of_many_users_stops(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour-old dump takes long to be made good, and a planned restart waits for nobody."""
    before, real, pages = owning.backing.snapshot(), owning.store.commit, list[int]()
    await owning.send(40)
    await owning.settle()

    async def slow(partition: int, commit: Commit) -> CommitOutcome:
        rolls = owning.owner is not None and owning.owner.rolling
        if rolls and commit.expected and commit.expected.positions == commit.watermark.positions:
            pages.append(1)
            await asyncio.sleep(1.0)
        return await real(partition, commit)

    with monkeypatch.context() as patched:
        patched.setattr(owning.store, "commit", slow)
        owning.backing.restore(before)
        await owning.until(lambda: bool(pages))
        assert owning.owner is not None
        began = time.monotonic()
        await owning.owner.close(drain=True)
    assert len(pages) == 1 and time.monotonic() - began < 3
    owning.own()
    await owning.show_end()
    await owning.until(lambda: owning.metrics.rolled_back._value.get() == 2)
    await owning.settle()
    assert await owning.audit() == CLEAN


@pytest.mark.parametrize("said", ["whole", "part", "part, and the newer one not the newest"])
async def test_a_redis_that_goes_back_and_then_forward_again_holds_what_was_said_last(
    owning: Owning, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """As with an old dump that is restored by mistake, and then the newer one."""
    older = owning.backing.snapshot()
    await owning.send(40)
    await owning.settle()
    await owning.send(1, users=1)  # the last commit in the outbox names one alone
    await owning.settle()
    await owning.until(lambda: len(owning.backing.partition(0).outbox) == 1)  # trimmed
    newer = owning.backing.snapshot()
    if said.endswith("newest"):
        await owning.send(1, users=1)
        await owning.settle()
    before = len(await owning.scores())
    if said != "whole":
        at_the_second(owning, monkeypatch, newer)
    owning.backing.restore(older)
    await owning.until(lambda: owning.metrics.rolled_back._value.get() == 1)
    await owning.settle()
    if said == "whole":
        owning.backing.restore(newer)
        await owning.until(lambda: owning.metrics.rolled_back._value.get() == 2)
    await owning.until_swept(before + (40 if said == "whole" else 12) + 40)
    assert await owning.audit() == CLEAN
