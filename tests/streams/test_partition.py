"""The commit protocol of one partition: claims, roll-backs, fencing, lost stores and logs.

The first four are those that broke earlier rules: a rolled-back sweep, a roll-back behind equal
positions, a roll-back while idle, back-pressure against the roll-back rule.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from livevalue.embedded import Stack
from streams import broker, topics, upkeep
from streams.emit import Published
from streams.errors import PublishError
from streams.held import Held
from streams.publish import Publisher
from tests.streams.owning import CLEAN, START_MS, Owning, one_partition

DAY_MS = 86_400_000


@pytest.fixture
async def as_live(stack: Stack, topic_prefix: str) -> AsyncIterator[Owning]:
    """One that makes the pauses of a worker: how soon it notices what is wrong."""
    async with Owning(one_partition(stack.bootstrap, topic_prefix), as_live=True) as made:
        yield made


@pytest.fixture
async def owning(stack: Stack, topic_prefix: str) -> AsyncIterator[Owning]:
    async with Owning(one_partition(stack.bootstrap, topic_prefix)) as made:
        yield made


async def test_a_rolled_back_sweep_is_published_again_under_new_revisions(
    stack: Stack, topic_prefix: str
) -> None:
    async with Owning(one_partition(stack.bootstrap, topic_prefix, clock="wall")) as owning:
        owner = owning.own()
        await owning.send(200)
        await owning.settle()
        before = owning.backing.snapshot()
        published = len(await owning.scores())
        # 200 days of silence move every value: all users are published without any event.
        owning.now_ms = START_MS + 200 * DAY_MS
        for _ in range(200):
            if len(await owning.scores()) >= published + 40:
                break
            await asyncio.sleep(0.05)
        assert len(await owning.scores()) >= published + 40
        owning.backing.restore(before)
        await owning.until(lambda: owning.metrics.rolled_back._value.get() == 1)
        await owning.send(50)
        await owning.settle()
        await asyncio.sleep(1.0)  # several looks of upkeep
        await owning.settle()
        assert await owning.audit() == CLEAN
        assert not owner.halted


async def test_a_roll_back_behind_equal_positions_is_noticed_by_identity(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    owning.own()
    await owning.send(200)
    await owning.settle()
    before = owning.backing.snapshot()
    await owning.send(300)
    await owning.settle()
    assert owning.owner is not None
    await owning.owner.close(drain=False)
    owning.backing.restore(before)

    # This owner folds up to the published positions and dies before it publishes anything.
    died = asyncio.Event()

    async def die(self: Held, *of: object) -> None:
        died.set()
        await asyncio.sleep(3600)

    with monkeypatch.context() as patched:
        patched.setattr(Held, "make_good", die)
        victim = owning.own()
        await asyncio.wait_for(died.wait(), 20)
        assert victim._task is not None
        victim._task.cancel()
        await asyncio.gather(victim._task, return_exceptions=True)
    owning.own()
    await owning.until(lambda: owning.metrics.rolled_back._value.get() == 2)
    await owning.settle()
    assert await owning.audit() == CLEAN


async def test_after_a_claim_the_log_is_read_before_anything_is_delivered(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_QUIET_S", 3600.0)
    await owning.send(40)
    owning.own()
    await owning.settle()
    assert await owning.audit() == CLEAN


async def test_a_roll_back_while_nothing_arrives_is_noticed_and_mended(as_live: Owning) -> None:
    owning = as_live
    owning.own()
    await owning.send(100)
    await owning.settle()
    before = owning.backing.snapshot()
    # Many commits, that are not done again one by one: revisions must not come twice.
    for _ in range(10):
        await owning.send(15)
        await owning.settle()
    owning.backing.restore(before)
    await owning.until(lambda: owning.metrics.rolled_back._value.get() == 1, 10)
    await owning.settle()
    assert await owning.audit() == CLEAN


async def test_back_pressure_does_not_stop_the_way_out_of_a_roll_back(
    stack: Stack, topic_prefix: str
) -> None:
    settings = one_partition(stack.bootstrap, topic_prefix, outbox_users=10, batch=20)
    async with Owning(settings) as owning:
        owning.own()
        await owning.send(60)
        await owning.settle()
        before = owning.backing.snapshot()
        await owning.send(400)
        await owning.settle()
        owning.backing.restore(before)
        await owning.send(40)
        await owning.until(lambda: owning.metrics.rolled_back._value.get() == 1, 10)
        await owning.settle()
        assert await owning.audit() == CLEAN


def hold_publishing_up(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Nothing is published before the event is set."""
    can, publish = asyncio.Event(), Publisher._publish

    async def waits(self: Publisher) -> None:
        await can.wait()
        await publish(self)

    monkeypatch.setattr(Publisher, "_publish", waits)
    return can


async def test_while_nothing_can_be_published_no_more_than_a_batch_is_read_ahead(
    stack: Stack, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = one_partition(stack.bootstrap, topic_prefix, outbox_users=10, batch=20)
    async with Owning(settings) as owning:
        owner, can = owning.own(), hold_publishing_up(monkeypatch)
        await owning.send(2000)
        await owning.until(lambda: owner.outbox_users > 10)
        most = 0
        for _ in range(50):
            most = max(most, owner._intake.buffered)
            await asyncio.sleep(0.02)
        assert 0 < most < 60
        can.set()
        await owning.settle()
        assert await owning.audit() == CLEAN


async def test_large_dead_letters_that_wait_hold_processing_up_by_their_size(
    stack: Stack, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five thousand of a megabyte would be more than memory holds, or a transaction takes."""
    settings = one_partition(stack.bootstrap, topic_prefix, batch=2)
    async with Owning(settings) as owning:
        owner, can = owning.own(), hold_publishing_up(monkeypatch)
        topic = settings.kafka.sources[0]
        for _ in range(30):
            bad = b"{" + bytes(900_000)
            await owning.producer.send_and_wait(topic, bad, key=b"u1", partition=0)
        await owning.show_end()
        await owning.until(lambda: owner.outbox_users > 5000)
        await asyncio.sleep(0.5)
        assert 10 < owner.lag < 25
        can.set()
        await owning.until(lambda: owner.lag == 0 and owner.outbox_users == 0 and owner.idle)
        assert len(await owning.read(settings.kafka.dlq)) == 30


async def test_an_unknown_outcome_of_a_commit_is_claimed_again_and_nothing_is_doubled(
    owning: Owning,
) -> None:
    owning.own()
    await owning.send(60)
    await owning.settle()
    for lost in range(3):
        owning.backing.lose_answers = 1
        await owning.send(100 + lost)
        await owning.settle()
        assert owning.backing.lose_answers == 0
    assert await owning.audit() == CLEAN


async def test_of_two_owners_the_later_claim_wins_and_the_outputs_stay_single(
    owning: Owning,
) -> None:
    first = owning.own()
    await owning.send(100)
    await owning.settle()
    second = owning.own()
    await owning.send(200)
    await asyncio.sleep(0.5)
    first.saw_end([await owning.end()])
    await asyncio.sleep(1)
    await first.close(drain=False)
    await owning.send(100)
    await owning.settle()
    assert not second.halted
    assert await owning.audit() == CLEAN


async def test_what_a_dead_owner_left_in_the_outbox_is_published_with_its_dead_letters(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streams.publish import Publisher

    async def never(self: Publisher) -> None:
        await asyncio.sleep(3600)

    topic = owning.settings.kafka.sources[0]
    with monkeypatch.context() as patched:
        patched.setattr(Publisher, "_publish", never)
        victim = owning.own()
        await owning.send(30)
        await owning.producer.send_and_wait(
            topic, b"{broken", key=b"u1", partition=0, headers=[("trace", b"7")]
        )
        await owning.show_end()
        end = await owning.end()
        await owning.until(
            lambda: victim.watermark is not None and victim.watermark.positions[0] == end
        )
        await victim.close(drain=False)
    assert await owning.scores() == []
    owning.own()
    await owning.settle()
    assert await owning.audit() == CLEAN
    (letter,) = await owning.read(owning.settings.kafka.dlq)
    headers = dict(letter.headers)
    assert (letter.key, letter.value) == (b"u1", b"{broken")
    assert headers["trace"] == b"7"
    assert headers["__connect.errors.topic"] == topic.encode()
    assert headers["__connect.errors.offset"] == b"30"
    assert headers["__connect.errors.exception.class.name"] == b"livevalue.not_json"


async def test_dead_letters_are_not_published_twice_by_a_roll_back(owning: Owning) -> None:
    owning.own()
    await owning.send(40)
    await owning.settle()
    before = owning.backing.snapshot()
    topic = owning.settings.kafka.sources[0]
    await owning.producer.send_and_wait(topic, b"[]", key=b"u1", partition=0)
    await owning.send(20)
    await owning.settle()
    owning.backing.restore(before)
    await owning.producer.send_and_wait(topic, b"null", key=b"u2", partition=0)
    await owning.send(20)
    await owning.until(lambda: owning.metrics.rolled_back._value.get() == 1, 10)
    await owning.settle()
    assert await owning.audit() == CLEAN
    assert [r.value for r in await owning.read(owning.settings.kafka.dlq)] == [b"[]", b"null"]


async def test_a_store_that_lost_everything_halts_and_says_what_to_run(as_live: Owning) -> None:
    owning = as_live
    empty = owning.backing.snapshot()
    owning.own()
    await owning.send(40)
    await owning.settle()
    owning.backing.restore(empty)
    assert owning.owner is not None
    owner = owning.owner
    await owning.until(lambda: bool(owner.halted), 10)
    assert "livevalue recover" in owner.halted and "published" in owner.halted
    published = len(await owning.scores())
    await asyncio.sleep(0.5)
    assert len(await owning.scores()) == published


async def test_a_topic_made_again_halts_and_says_what_to_run(owning: Owning) -> None:
    from kafka import KafkaAdminClient  # type: ignore[import-untyped]

    owning.own()
    await owning.send(40)
    await owning.settle()
    assert owning.owner is not None
    await owning.owner.close(drain=True)

    def make_again() -> None:
        admin = KafkaAdminClient(**broker.connection(owning.settings.kafka))
        admin.delete_topics([owning.settings.kafka.sources[0]])
        admin.close()

    await asyncio.to_thread(make_again)
    for _ in range(50):
        await asyncio.to_thread(topics.apply, owning.settings)
        if not await asyncio.to_thread(topics.check, owning.settings):
            break
        await asyncio.sleep(0.1)
    owner = owning.own()
    await owning.until(lambda: bool(owner.halted))
    assert "made again" in owner.halted and "recover adopt" in owner.halted


async def test_a_published_record_below_what_the_store_knows_is_read_again(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streams.publish import Publisher

    owning.own()
    await owning.send(40)
    await owning.settle()
    assert owning.owner is not None
    await owning.owner.close(drain=True)
    real = Publisher.last_published
    answers = iter([None, None])

    async def forgetful(self: Publisher) -> Published | None:
        return next(answers, await real(self))

    monkeypatch.setattr(Publisher, "last_published", forgetful)
    owning.own()
    await owning.send(40)
    await owning.settle()
    assert await owning.audit() == CLEAN
    doubted = owning.metrics.irregular.labels(PublishError.__name__)._value.get()
    assert doubted == 2


async def test_a_published_record_that_stays_lost_ends_in_a_sweep_of_every_user(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streams import claim
    from streams.publish import Publisher

    owning.own()
    await owning.send(40)
    await owning.settle()
    assert owning.owner is not None
    await owning.owner.close(drain=True)
    published = len(await owning.scores())
    real, calls = Publisher.last_published, []

    async def lost(self: Publisher) -> Published | None:
        calls.append(1)
        return None if len(calls) < 8 else await real(self)

    monkeypatch.setattr(Publisher, "last_published", lost)
    monkeypatch.setattr(claim, "_PUBLISHED_PATIENCE_S", 0.3)
    owning.own()
    await owning.settle()
    for _ in range(100):
        records = await owning.scores()
        if len(records) >= published + 40:
            break
        await asyncio.sleep(0.05)
    swept = [json.loads(r.value or b"") for r in records[published:]]
    assert {d["user_id"] for d in swept} == set(owning.sent)
    assert await owning.audit() == CLEAN
