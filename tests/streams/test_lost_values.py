"""Values that `scores` has lost, by a topic made again or cut, are published anew by themselves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from aiokafka import TopicPartition  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from kafka import KafkaAdminClient  # type: ignore[import-untyped]
from kafka import TopicPartition as AdminPartition
from kafka.admin import ConfigResource  # type: ignore[import-untyped]

from featurestore.store import Commit, CommitOutcome
from livevalue.embedded import Stack
from streams import claim, publish, sweep, topics
from streams.delivery import RawRecord
from streams.errors import PublishError, Stale, TopicError
from streams.gap import Bounds, LogReader
from streams.publish import Publisher
from streams.rollback import Rollback
from streams.settings import WorkerSettings
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


async def made_again(owning: Owning, topic: str) -> None:
    administer(owning.settings, lambda client: client.delete_topics([topic]))
    while topics.check(owning.settings):
        topics.apply(owning.settings)
        await asyncio.sleep(0.1)


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
    await made_again(owning, kafka.scores)
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


async def test_a_claim_that_finds_scores_away_for_a_moment_halts_nobody(owning: Owning) -> None:
    """Of a topic that stays away the watchdog speaks."""
    _, owner = await folded(owning, 40)
    irregular, kafka = owning.metrics.irregular, owning.settings.kafka
    administer(owning.settings, lambda client: client.delete_topics([kafka.scores]))
    owner.doubt("anything")
    await owning.until(
        lambda: bool(owner.halted) or irregular.labels(TopicError.__name__)._value.get() > 0
    )
    assert not owner.halted
    while topics.check(owning.settings):
        topics.apply(owning.settings)
        await asyncio.sleep(0.1)
    await owning.until_swept(40)
    assert await owning.audit() == CLEAN


async def test_a_loss_that_a_transaction_saw_is_remembered_while_a_roll_back_is_made_good(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but memory knows of it, until everybody is on the way again."""
    _, owner = await folded(owning, 100)
    await owning.send(1, users=1)  # the last commit in the outbox names one alone
    await owning.settle()
    await owning.until(lambda: len(owning.backing.partition(0).outbox) == 1)  # trimmed
    before, transact = owning.backing.snapshot(), Publisher._transact
    published = len(await owning.scores())

    async def and_redis_goes_back(self: Publisher, *what: Any) -> None:
        try:
            await transact(self, *what)
        except PublishError:
            owning.backing.restore(before)
            raise

    await owning.send(5)
    await owning.settle()
    assert owner._held is not None
    owner._held.publisher.scores_end += 10_000  # what the broker had said before it lost it
    with monkeypatch.context() as patched:
        patched.setattr(Publisher, "_transact", and_redis_goes_back)
        patched.setattr(Rollback, "caught_up", lambda self, mark: False)
        await owning.send(1, users=1)
        await owning.until(lambda: owner.rolling)
        first = owner._held
        owner.doubt("anything")
        await owning.until(lambda: owner.rolling and owner._held is not first)
    await owning.until_swept(published + 5 + 40)
    assert await owning.audit() == CLEAN


async def test_an_end_that_lags_behind_a_commit_is_no_loss(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction's end is not at once on every partition of it."""
    watched, _ = await folded(owning, 40)
    await watched.look()
    await owning.send(1)
    await owning.settle()
    Cut(owning, monkeypatch, 1)
    await watched.look()
    await asyncio.sleep(0.5)
    assert owning.metrics.irregular.labels(Stale.__name__)._value.get() == 0


async def test_a_sweep_that_a_roll_back_has_undone_is_begun_again(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "PAGE", 15)
    _, owner = await folded(owning, 100)
    await owning.send(1, users=1)  # the last commit in the outbox names one alone
    await owning.settle()
    before, pages = owning.backing.snapshot(), list[object]()
    real = owning.store.commit

    async def commit(partition: int, commit: Commit) -> CommitOutcome:
        done = await real(partition, commit)
        pages.append(owning.backing.snapshot())
        return done

    monkeypatch.setattr(owning.store, "commit", commit)
    assert owner._held is not None
    owner._held.publisher.scores_end += 10_000  # so it sweeps
    said = len(await owning.scores())
    await owning.send(1, users=1)
    await owning.until_swept(said + 40)
    await owner.close(drain=True)
    # Behind all of it, and an owner ends amid catching up; behind its first page; behind its end.
    for n, state in enumerate((before, pages[2], pages[-1]), 1):
        owning.backing.restore(state)
        if state is before:
            await amid_catching_up(owning, monkeypatch)
        owner = owning.own()
        await owning.send(1, users=1)
        await owning.settle()
        await owning.until(lambda n=n: owning.metrics.rolled_back._value.get() == n + 1)
        await asyncio.sleep(1.0)  # a sweep that is pending gets on
        await owning.settle()
        assert await owning.audit() == CLEAN, n
        await owner.close(drain=True)


async def amid_catching_up(owning: Owning, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner has folded all again, and ends before it has said anything."""
    with monkeypatch.context() as patched:
        patched.setattr(Rollback, "caught_up", lambda self, mark: False)
        owner = owning.own()
        await owning.send(1, users=1)
        end = await owning.end()
        await owning.until(
            lambda: owner.watermark is not None and owner.watermark.positions[0] >= end
        )
        await owner.close(drain=False)


async def test_what_says_how_far_is_missed_for_a_moment_and_then_everything_is_said_again(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "_PUBLISHED_PATIENCE_S", 0.3)
    monkeypatch.setattr(sweep, "PAGE", 15)
    watched, _ = await folded(owning, 100)
    kafka = owning.settings.kafka
    await owning.producer.send_and_wait(kafka.sources[0], b"{bad", key=b"u1", partition=0)
    await owning.send(1)
    await owning.settle()
    published, name = len(await owning.scores()), kafka.published
    await made_again(owning, name)
    await watched.look()
    await owning.until_swept(published + 40)
    await owning.send(5)
    await owning.settle()
    assert await owning.audit() == CLEAN
    assert len(await owning.read(name)) > 0
    assert len(await owning.read(kafka.dlq)) == 1  # the outbox keeps what was published last


@pytest.mark.parametrize("when", ["settled", "unpublished", "first"])
async def test_behind_a_roll_back_nothing_is_said_twice_though_what_says_how_far_is_lost(
    owning: Owning, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """How far it was, the last document on `scores` says, too."""
    monkeypatch.setattr(claim, "_PUBLISHED_PATIENCE_S", 0.3)
    states, real = list[object](), owning.store.commit

    async def commit(partition: int, commit: Commit) -> CommitOutcome:
        done = await real(partition, commit)
        states.append(owning.backing.snapshot())
        return done

    monkeypatch.setattr(owning.store, "commit", commit)
    watched, owner = await folded(owning, 60)
    settled = owning.backing.snapshot()
    for _ in range(6):
        await owning.send(40)
        await owning.settle()
    await owner.close(drain=True)
    await made_again(owning, owning.settings.kafka.published)
    owning.backing.restore(
        {"settled": settled, "unpublished": states[-3], "first": states[0]}[when]
    )
    published = len(await owning.scores())
    watched.owners[0] = owning.own()
    await owning.until_swept(published + 40)
    await owning.send(5)
    await owning.settle()
    assert await owning.audit() == CLEAN


async def test_what_a_claim_publishes_ends_with_the_highest_revision(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else, where what says how far is lost and Redis goes back, they go back, or come twice."""
    monkeypatch.setattr(claim, "_PUBLISHED_PATIENCE_S", 0.3)
    _, owner = await folded(owning, 2)

    async def never(self: Publisher) -> None:
        await asyncio.sleep(3600)

    states = list[Any]()
    with monkeypatch.context() as patched:
        patched.setattr(Publisher, "_publish", never)
        # All three, then one by one: the last is neither the first nor the last of them.
        for count in (3, 1, 1, 1, 1, 1):
            await owning.send(count, users=3)
            end = await owning.end()
            await owning.until(
                lambda end=end: owner.watermark is not None and owner.watermark.positions[0] >= end
            )
            states.append(owning.backing.snapshot())
        await owner.close(drain=False)
    owner = owning.own()
    await owning.settle()
    await owner.close(drain=True)
    said = [json.loads(r.value)["revision"] for r in await owning.scores() if r.value is not None]
    assert said[-1] == max(said)
    await made_again(owning, owning.settings.kafka.published)
    owning.backing.restore(states[0])
    published = len(await owning.scores())
    owning.own()
    await owning.show_end()
    await owning.until_swept(published + 3)
    await owning.send(5, users=3)
    await owning.settle()
    assert await owning.audit() == CLEAN


@pytest.mark.parametrize("end", ["document", "tombstone", "nothing"])
async def test_scores_whose_cut_end_other_records_have_taken_the_place_of_are_said_again(
    owning: Owning, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """As an unended transaction does: as long as it should be, it ends with another value."""
    _, owner = await folded(owning, 40)
    kafka, real, lost = owning.settings.kafka, LogReader.last, [1]
    if end == "tombstone":
        await owning.producer.send_and_wait(kafka.sources[0], None, key=b"u7", partition=0)
        await owning.show_end()
        await owning.settle()
    await owning.until_swept(40 + (end == "tombstone"))
    assert ((await owning.scores())[-1].value is None) == (end == "tombstone")
    published = len(await owning.scores())
    await owner.close(drain=True)

    async def last(
        self: LogReader, tp: TopicPartition, before: int | None = None, **said: bool
    ) -> RawRecord | None:
        found = await real(self, tp, before, **said)
        if tp.topic != kafka.scores or found is None or before is not None or not lost:
            return found
        return None if end == "nothing" else await real(self, tp, found.offset, **said)

    monkeypatch.setattr(LogReader, "last", last)
    owner = owning.own()
    await owning.until(lambda: owner.ready)
    lost.clear()
    await owning.until_swept(published + 39)
    # And that is all.
    published = len(await owning.scores())
    await owner.close(drain=True)
    owner = owning.own()
    await owning.until(lambda: owner.ready)
    await asyncio.sleep(0.5)
    assert len(await owning.scores()) == published


async def test_scores_that_were_deleted_by_age_are_said_again_once_they_are_no_more(
    owning: Owning,
) -> None:
    """The worker is refused until its operator has mended the topic; what went stays gone."""
    _, owner = await folded(owning, 40)
    kafka = owning.settings.kafka
    await owner.close(drain=True)
    scores = AdminPartition(kafka.scores, 0)

    def age(client: KafkaAdminClient) -> None:
        policy = {"cleanup.policy": "compact,delete"}
        client.alter_configs([ConfigResource("TOPIC", kafka.scores, policy)])
        client.delete_records({scores: 30})

    administer(owning.settings, age)
    assert "deleted by age" in topics.check(owning.settings)[0].message
    topics.apply(owning.settings)
    assert len(await owning.scores()) == 10
    owning.own()
    await owning.until_swept(10 + 40)
    assert await owning.audit() == CLEAN
    # And that is all.
    assert owning.owner is not None
    await owning.owner.close(drain=True)
    owner = owning.own()
    await owning.until(lambda: owner.ready)
    await asyncio.sleep(0.5)
    assert len(await owning.scores()) == 50


def test_a_record_that_stays_away_is_given_up_before_the_watchdog_ends_the_worker() -> None:
    assert WorkerSettings().stall_s > 3 * claim._PUBLISHED_PATIENCE_S


async def test_a_batch_that_the_broker_refuses_is_never_left_out_of_a_transaction(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of several it is."""
    monkeypatch.setattr(publish, "_BATCH_BYTES", 20_000)
    _, owner = await folded(owning, 40)
    assert owner._held is not None
    producer, batches = owner._held.publisher._producer, list[str]()
    assert producer is not None
    send = producer.send_batch

    async def refused(builder: object, topic: str, **said: object) -> object:
        sent = await send(builder, topic, **said)
        batches.append(topic)

        async def answer() -> object:
            await sent
            raise KafkaError("refused")

        last = topic == owning.settings.kafka.scores and batches.count(topic) == 2
        return asyncio.ensure_future(answer()) if last else sent

    monkeypatch.setattr(producer, "send_batch", refused)
    await owning.send(40)
    await owning.settle()
    assert batches.count(owning.settings.kafka.scores) > 1
    assert owning.metrics.irregular.labels(PublishError.__name__)._value.get() == 1
    assert await owning.audit() == CLEAN


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
