"""Values that `scores` has lost, by a topic made again or cut, are published anew by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from aiokafka import TopicPartition  # type: ignore[import-untyped]

from livevalue.embedded import Stack
from streams import topics
from streams.errors import PublishError, Stale
from streams.gap import Bounds, LogReader
from tests.streams.owning import CLEAN, Owning, one_partition
from tests.streams.test_watchdog import Watched, administer, folded


@pytest.fixture
async def owning(stack: Stack, topic_prefix: str) -> AsyncIterator[Owning]:
    async with Owning(one_partition(stack.bootstrap, topic_prefix)) as made:
        yield made


async def twice_looked(watched: Watched) -> None:
    """What transactions have brought is compared with the look before."""
    await watched.look()
    await watched.look()


class Cut:
    """`scores` ends short of what was published, until everybody is on the way again."""

    def __init__(self, owning: Owning, monkeypatch: pytest.MonkeyPatch, short: int) -> None:
        self.short = short
        name, real, made = owning.settings.kafka.scores, LogReader.bounds, self

        async def bounds(
            self: LogReader, tps: Sequence[TopicPartition]
        ) -> dict[TopicPartition, Bounds]:
            found = await real(self, tps)
            return {
                tp: Bounds(at.start, at.end - made.short) if tp.topic == name else at
                for tp, at in found.items()
            }

        monkeypatch.setattr(LogReader, "bounds", bounds)


async def test_scores_that_end_before_what_was_published_are_said_again(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, owner = await folded(owning, 100)
    await twice_looked(watched)
    irregular = owning.metrics.irregular.labels(Stale.__name__)
    assert irregular._value.get() == 0 and owner.scores_end == await owning.end_of_scores()
    cut = Cut(owning, monkeypatch, 1)  # the last marker alone
    published = len(await owning.scores())
    await watched.look()
    await owning.until(lambda: irregular._value.get() == 1)
    await owning.until(lambda: owner.ready)
    cut.short = 0
    await owning.until_swept(published + 40)
    assert await owning.audit() == CLEAN
    # And that is all: neither this one nor another one says it once more.
    published = len(await owning.scores())
    await owner.close(drain=True)
    owning.own()
    await owning.send(1)
    await owning.settle()
    await asyncio.sleep(0.5)
    assert len(await owning.scores()) == published + 1


async def test_a_transaction_that_begins_before_the_end_of_the_last_one_says_everything_again(
    owning: Owning,
) -> None:
    _, owner = await folded(owning, 100)
    assert owner._held is not None
    owner._held.publisher.scores_end += 10_000  # what the broker had said before it lost it
    published = len(await owning.scores())
    await owning.send(5)
    await owning.until_swept(published + 40)
    assert owning.metrics.irregular.labels(PublishError.__name__)._value.get() == 1
    assert await owning.audit() == CLEAN


async def test_scores_made_again_are_said_again_also_behind_a_roll_back(owning: Owning) -> None:
    watched, owner = await folded(owning, 60)
    before = owning.backing.snapshot()
    await owning.send(60)
    await owning.settle()
    await owner.close(drain=True)
    owning.backing.restore(before)
    kafka = owning.settings.kafka
    administer(owning.settings, lambda client: client.delete_topics([kafka.scores]))
    while topics.check(owning.settings):
        topics.apply(owning.settings)
        await asyncio.sleep(0.1)
    watched.owners[0] = owning.own()
    await owning.until(lambda: owning.metrics.rolled_back._value.get() == 1)
    await owning.until_swept(40)
    assert await owning.audit() == CLEAN
    # It is not said once more by the next claim.
    said = len(await owning.scores())
    watched.owners[0].doubt("anything")
    await owning.until(lambda: owning.metrics.irregular.labels(Stale.__name__)._value.get() == 1)
    await owning.until(lambda: watched.owners[0].ready)
    await asyncio.sleep(0.5)
    assert len(await owning.scores()) == said


async def test_a_batch_whose_offset_the_broker_does_not_say_is_no_loss(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the answer may be to one that was sent twice."""
    _, owner = await folded(owning, 40)
    assert owner._held is not None
    producer = owner._held.publisher._producer
    assert producer is not None
    send = producer.send_batch

    async def unsaid(*args: object, **said: object) -> object:
        sent = await send(*args, **said)

        async def answer() -> object:
            return (await sent)._replace(offset=-1)

        return asyncio.ensure_future(answer())

    monkeypatch.setattr(producer, "send_batch", unsaid)
    published = len(await owning.scores())
    await owning.send(5)
    await owning.settle()
    assert len(await owning.scores()) == published + 5
    assert owning.metrics.irregular.labels(PublishError.__name__)._value.get() == 0
    assert owner.scores_end == await owning.end_of_scores()
