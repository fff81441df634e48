"""A worker that does not get on gives up with one clear line; one that does is left alone."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import pytest
from aiokafka import TopicPartition  # type: ignore[import-untyped]
from kafka import KafkaAdminClient  # type: ignore[import-untyped]
from kafka import TopicPartition as AdminPartition
from kafka.admin import ConfigResource  # type: ignore[import-untyped]

from livevalue.embedded import Stack
from streams import broker, knock, leaders, topics, trail, watchdog
from streams.delivery import RawRecord, Segment, Simple
from streams.gap import Bounds, LogReader
from streams.partition import Owner
from streams.publish import Publisher
from streams.settings import KafkaSettings, Settings
from streams.watchdog import Watchdog
from tests.streams.owning import Owning, one_partition


class Watched:
    def __init__(self, owning: Owning) -> None:
        self.owners: dict[int, Owner] = {}
        self.coordinated = True
        self.said: list[str] = []
        self.dog = Watchdog(
            owning.settings, lambda: self.owners, lambda: self.coordinated, self.said.append
        )

    async def look(self) -> None:
        """As if it had not asked the broker for long."""
        self.dog._ends_s = self.dog._topics_s = 0.0
        await self.dog.look()


@pytest.fixture
async def owning(stack: Stack, topic_prefix: str) -> AsyncIterator[Owning]:
    async with Owning(one_partition(stack.bootstrap, topic_prefix, stall_s=1.0)) as made:
        yield made


async def folded(owning: Owning, count: int) -> tuple[Watched, Owner]:
    """An owner that has folded so many events, and who watches it."""
    watched = Watched(owning)
    owner = watched.owners[0] = owning.own()
    await owning.send(count)
    await owning.settle()
    return watched, owner


def administer(settings: Settings, work: Callable[[KafkaAdminClient], object]) -> None:
    client = KafkaAdminClient(**broker.connection(settings.kafka))
    work(client)
    client.close()


async def test_an_output_that_vanishes_ends_the_worker_and_says_what_becomes_of_it(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka, found = owning.settings.kafka, topics.all_found
    for name, then in (
        (kafka.scores, "start the worker, which publishes every user again"),
        (kafka.published, "start the worker, which publishes every user again"),
        (kafka.dlq, f"start the worker; the dead letters of {kafka.dlq} are gone"),
        (kafka.sources[0], "see `livevalue recover --help`"),
    ):

        def without(asked: Settings, name: str = name) -> dict[str, topics.TopicFound]:
            return {topic: x for topic, x in found(asked).items() if topic != name}

        monkeypatch.setattr(topics, "all_found", without)
        monkeypatch.setattr(watchdog, "_MISSING_S", 0.0)
        watched = Watched(owning)
        await watched.look()
        assert f"topic {name} does not exist" in watched.said[0]
        assert watched.said[0].endswith(f"`livevalue topics --apply`, then {then}")


@pytest.mark.parametrize("output", ["scores", "published"])
async def test_an_output_that_was_made_again_otherwise_ends_the_worker(
    owning: Owning, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """As a broker makes it that makes topics for whoever asks."""
    found, name = topics.all_found(owning.settings), getattr(owning.settings.kafka, output)
    right = found[name]
    for wrong, why in (
        (replace(right, compacted=False), "is not compacted"),
        (replace(right, epochs=(0, 0)), "has 2 partitions, the sources have 1"),
    ):
        monkeypatch.setattr(topics, "all_found", lambda asked, wrong=wrong: {**found, name: wrong})
        watched = Watched(owning)
        await watched.look()
        assert f"{name} {why}" in watched.said[0]
    monkeypatch.setattr(topics, "all_found", lambda asked: found)
    watched = Watched(owning)
    await watched.look()
    assert watched.said == []
    letters = owning.settings.kafka.dlq
    compacted = {**found, letters: replace(found[letters], compacted=True)}
    monkeypatch.setattr(topics, "all_found", lambda asked: compacted)
    await watched.look()
    assert f"{letters} is compacted" in watched.said[0]


async def test_lag_that_shrinks_is_no_stall_and_lag_that_stands_is_one(owning: Owning) -> None:
    watched, owner = await folded(owning, 100)
    await watched.dog.look()
    await owner.close(drain=True)
    await owning.send(10)
    await watched.look()  # asks the broker for the end itself
    assert owner.lag == 10 and watched.said == []
    owner.moved_s = time.monotonic() - 2
    await watched.dog.look()
    assert len(watched.said) == 1
    assert "0: 10" in watched.said[0] and "livevalue doctor" in watched.said[0]


async def test_a_halted_partition_is_no_stall_but_only_halted_ones_end_the_worker(
    owning: Owning,
) -> None:
    watched = Watched(owning)
    halted, well = owning.own(), Owner(1, owning.owner._around)  # type: ignore[union-attr]
    halted.halted = "the store is lost: run `livevalue recover rebuild`"
    halted.saw_end([5])
    halted.moved_s = 0.0
    watched.owners = {0: halted}
    await watched.dog.look()
    assert watched.said == [halted.halted]
    watched.said.clear()
    watched.owners[1] = well
    watched.dog._ends_s = time.monotonic()  # partition 1 does not exist on this broker
    await watched.dog.look()
    assert watched.said == []


async def test_a_group_without_a_coordinator_for_long_ends_the_worker(owning: Owning) -> None:
    watched = Watched(owning)
    await watched.dog.look()
    watched.coordinated = False
    await watched.dog.look()
    assert watched.said == []
    watched.dog._coordinated_s -= 2
    await watched.dog.look()
    assert "coordinator" in watched.said[0] and owning.settings.kafka.app in watched.said[0]


async def test_a_topic_that_is_missing_for_a_moment_is_no_end_and_one_that_stays_away_is(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, found, there = Watched(owning), topics.all_found, False
    monkeypatch.setattr(topics, "all_found", lambda asked: found(asked) if there else {})

    await watched.look()  # a broker that starts answers like this
    there = True
    await watched.look()
    await asyncio.sleep(2.0)
    there = False
    gone = time.monotonic()
    await watched.look()
    while not watched.said:
        await watched.dog.look()
        await asyncio.sleep(0.05)
        assert time.monotonic() - gone < 5
    assert time.monotonic() - gone > 1.5
    assert owning.settings.kafka.sources[0] in watched.said[0]
    assert "livevalue topics --apply" in watched.said[0]


async def test_a_topic_made_again_under_a_running_worker_halts_within_ten_seconds(
    owning: Owning,
) -> None:
    watched, owner = await folded(owning, 100)
    watching = asyncio.create_task(watched.dog.run())
    try:
        await asyncio.to_thread(_make_again, owning.settings)
        made = time.monotonic()
        await owning.until(lambda: bool(owner.halted), 12.0)
    finally:
        watching.cancel()
    assert time.monotonic() - made < 10
    assert "made again" in owner.halted and "livevalue recover adopt" in owner.halted


async def test_a_topic_made_again_and_longer_than_before_when_it_is_looked_at_halts_too(
    owning: Owning,
) -> None:
    watched, owner = await folded(owning, 20)
    await asyncio.to_thread(_make_again, owning.settings)
    await owning.send(60)  # no end lies before the watermark now
    until = time.monotonic() + 10
    while not owner.halted and time.monotonic() < until:
        await watched.look()
        await asyncio.sleep(0.1)
    assert "made again" in owner.halted and "livevalue recover adopt" in owner.halted


def _make_again(settings: Settings) -> None:
    administer(settings, lambda at: at.delete_topics([settings.kafka.sources[0]]))
    until = time.monotonic() + 20
    while topics.check(settings):
        assert time.monotonic() < until
        topics.apply(settings)
        time.sleep(0.1)


async def test_partitions_added_under_a_running_worker_end_it_with_the_setting_named(
    owning: Owning,
) -> None:
    watched, _ = await folded(owning, 20)
    await watched.dog.look()
    assert watched.said == []

    more = {owning.settings.kafka.sources[0]: 2}
    await asyncio.to_thread(administer, owning.settings, lambda at: at.create_partitions(more))
    until = time.monotonic() + 10
    while not watched.said and time.monotonic() < until:
        await watched.look()  # a broker answers from what it knows, which comes a moment later
    (said,) = watched.said
    assert "LIVEVALUE_KAFKA__PARTITIONS is 1" in said and "(2)" in said


async def test_a_source_made_compacted_under_a_running_worker_ends_it_unless_that_is_accepted(
    owning: Owning,
) -> None:
    watched, _ = await folded(owning, 20)
    topic = owning.settings.kafka.sources[0]
    made = ConfigResource("TOPIC", topic, {"cleanup.policy": "compact"})
    watching = asyncio.create_task(watched.dog.run())
    try:
        await asyncio.to_thread(administer, owning.settings, lambda at: at.alter_configs([made]))
        since = time.monotonic()
        while not watched.said:
            await asyncio.sleep(0.05)
            assert time.monotonic() - since < 10
    finally:
        watching.cancel()
    assert watched.said[0].startswith(f"{topic} is compacted")
    assert "LIVEVALUE_KAFKA__COMPACTED=accept" in watched.said[0]

    kafka = owning.settings.kafka.model_copy(update={"compacted": "accept"})
    owning.settings = owning.settings.model_copy(update={"kafka": kafka})
    accepting = Watched(owning)
    accepting.owners = watched.owners
    await accepting.look()
    assert accepting.said == []


async def test_a_log_that_ends_before_the_watermark_is_claimed_again_and_checked(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, owner = await folded(owning, 100)
    read = LogReader.bounds

    async def cut(self: LogReader, tps: Sequence[TopicPartition]) -> dict[TopicPartition, Bounds]:
        # A broker that lost its newest records answers like this.
        found = await read(self, tps)
        return {
            tp: Bounds(at.start, min(at.end, 60)) if tp.topic.endswith("events") else at
            for tp, at in found.items()
        }

    monkeypatch.setattr(LogReader, "bounds", cut)
    await watched.look()
    await owning.until(lambda: bool(owner.halted), 10.0)
    assert "ends at offset 60, yet 100 was folded" in owner.halted
    assert "livevalue recover adopt" in owner.halted


class Leaders:
    """Says who leads, and once it has cut what it leads, what the log then holds and where."""

    def __init__(self, owning: Owning, monkeypatch: pytest.MonkeyPatch) -> None:
        self.epoch, self.cut_at, self.cut_end = 0, 0, 0
        self._topic = owning.settings.kafka.sources[0]
        self._found, self._these, self._ends = (
            topics.all_found,
            LogReader.these,
            leaders.epoch_ends,
        )
        lead = self

        async def these(
            reader: LogReader, tp: TopicPartition, offsets: Iterable[int]
        ) -> dict[int, RawRecord]:
            return await lead.these(reader, tp, offsets)

        monkeypatch.setattr(topics, "all_found", self.found)
        monkeypatch.setattr(LogReader, "these", these)
        monkeypatch.setattr(leaders, "epoch_ends", self.ends)

    def found(self, settings: Settings) -> dict[str, topics.TopicFound]:
        real = self._found(settings)
        return {t: topics.TopicFound(x.id, (self.epoch,), x.compacted) for t, x in real.items()}

    def cut(self, low: int, high: int) -> None:
        """The next leader has lost [low, high), and was written on."""
        self.epoch, self.cut_at, self.cut_end = self.epoch + 1, low, high

    async def these(
        self, reader: LogReader, tp: TopicPartition, offsets: Iterable[int]
    ) -> dict[int, RawRecord]:
        there = await self._these(reader, tp, offsets)
        if tp.topic == self._topic:
            others = (o for o in there if self.cut_at <= o < self.cut_end)
            there |= {o: Simple(o, b"u1", b"{}") for o in others}
        return there

    def ends(
        self, kafka: KafkaSettings, asked: Mapping[tuple[str, int], int]
    ) -> dict[tuple[str, int], int]:
        if self.cut_end:
            return dict.fromkeys(asked, self.cut_at)
        # As the broker says: in truth its leader is that of 0 still, and its log has not ended.
        return self._ends(kafka, dict.fromkeys(asked, 0))


async def test_a_log_that_was_cut_and_written_on_behind_another_leader_halts(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead = Leaders(owning, monkeypatch)
    watched, owner = await folded(owning, 100)
    claims = owning.metrics.claims._value.get
    await watched.look()
    # A leader that has what the one before had: claimed again, and work goes on.
    before, lead.epoch = claims(), 1
    await watched.look()
    await owning.until(lambda: claims() == before + 1 and owner.ready)
    await owning.send(10)
    await owning.settle()
    await watched.look()
    await asyncio.sleep(0.3)
    assert claims() == before + 1 and not owner.halted
    asked = {(owning.settings.kafka.sources[0], 0): 0}
    assert lead._ends(owning.settings.kafka, asked) == {(owning.settings.kafka.sources[0], 0): 110}

    # One that has lost 90 to 110, and was written on and read before anybody looked.
    await owning.send(10)
    await owning.settle()
    lead.cut(90, 110)
    await watched.look()
    await owning.until(lambda: bool(owner.halted), 10.0)
    assert "was cut at offset 90 and written on" in owner.halted
    assert "livevalue recover adopt" in owner.halted and "recover rebuild" in owner.halted
    # Whoever claims next finds it in the store.
    again = owning.own()
    await owning.until(lambda: bool(again.halted), 10.0)
    assert again.halted == owner.halted


async def test_who_reads_beyond_a_cut_and_dies_before_anybody_looks_leaves_word_of_it(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead = Leaders(owning, monkeypatch)
    watched, owner = await folded(owning, 100)
    await watched.look()
    # Another leader alone, and nobody there to see it change: the next one goes on.
    await owner.close(drain=True)
    lead.epoch = 1
    owner = owning.own()
    await owning.until(lambda: owner.ready)
    assert not owner.halted
    await asyncio.sleep(trail._EACH_S)  # so that what comes is another mark than what was read
    await owning.send(10)
    await owning.settle()
    # 95 to 110 is lost; 110 to 120 came after that, and is the last that was read.
    await asyncio.sleep(trail._EACH_S)
    await owning.send(10)
    await owning.settle()
    await owner.close(drain=True)
    lead.cut(95, 110)
    again = owning.own()
    await owning.until(lambda: again.ready or bool(again.halted), 10.0)
    assert "was cut at offset 95 and written on" in again.halted


async def test_retention_that_overtakes_what_was_read_halts_though_nothing_is_taken_meanwhile(
    stack: Stack, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Owning(one_partition(stack.bootstrap, topic_prefix, outbox_users=1)) as owning:
        watched, owner = await folded(owning, 40)

        async def stuck(self: Publisher) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(Publisher, "_publish", stuck)
        await owning.send(10)
        await owning.until(lambda: owner.in_hand == [50] and owner.outbox_users == 10)
        owner.deliver(0, Segment(60, 70, []))
        await owning.send(20)

        async def retention(start: int) -> None:
            cut = {AdminPartition(owning.settings.kafka.sources[0], 0): start}
            await asyncio.to_thread(administer, owning.settings, lambda at: at.delete_records(cut))
            await watched.look()

        # What was read may go: it is in hand.
        await retention(50)
        await asyncio.sleep(0.5)
        assert not owner.halted and owner.outbox_users == 10
        await retention(55)
        await owning.until(lambda: bool(owner.halted), 10.0)
        assert "starts at offset 55, the store needs 50" in owner.halted
        assert "livevalue recover adopt" in owner.halted


async def test_whatever_keeps_the_watchdog_from_looking_ends_the_worker(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "_EVERY_S", 0.01)
    watched, _ = await folded(owning, 10)

    def fails(asked: Settings) -> dict[str, topics.TopicFound]:
        raise KeyError("of a driver")

    monkeypatch.setattr(topics, "all_found", fails)
    looking = asyncio.create_task(watched.dog.run())
    try:
        await owning.until(lambda: bool(watched.said) or looking.done())
        assert not looking.done()
    finally:
        looking.cancel()
    assert "KeyError('of a driver')" in watched.said[0]


async def test_a_driver_that_is_cancelled_by_itself_does_not_end_the_watchdog(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "_EVERY_S", 0.01)
    watched, _ = await folded(owning, 10)
    bounds, asked = LogReader.bounds, list[int]()

    async def cancelled(
        self: LogReader, tps: Sequence[TopicPartition]
    ) -> dict[TopicPartition, Bounds]:
        if self is not watched.dog._reader:
            return await bounds(self, tps)
        asked.append(1)
        watched.dog._ends_s = 0.0  # ask again at once
        raise asyncio.CancelledError

    monkeypatch.setattr(LogReader, "bounds", cancelled)
    looking = asyncio.create_task(watched.dog.run())
    try:
        await owning.until(lambda: len(asked) > 1 or looking.done())
        assert not looking.done()
    finally:
        looking.cancel()
        await asyncio.wait([looking])
    assert looking.cancelled() and watched.said == []


async def test_a_broker_that_does_not_answer_is_no_stall_until_it_answers_again(
    owning: Owning, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = owning.own()
    await owning.send(10)
    await owning.settle()
    await owner.close(drain=True)
    await owning.send(10)
    owner.saw_end([20])
    monkeypatch.setattr(knock, "_CONNECT_S", 0.2)
    monkeypatch.setattr(watchdog, "_EVERY_S", 0.1)
    here = owning.settings  # stall_s is 1
    watched = Watched(owning)
    watched.owners[0], watched.coordinated = owner, False
    watched.dog._ends_s = time.monotonic() + 60  # its own connection is to the broker
    with socket.socket() as deaf:  # the kernel takes connections, nobody answers
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        at = {"bootstrap": f"127.0.0.1:{deaf.getsockname()[1]}"}
        away = here.model_copy(update={"kafka": here.kafka.model_copy(update=at)})
        watched.dog._settings = away
        owner.moved_s = time.monotonic()
        looking = asyncio.create_task(watched.dog.run())
        try:
            for _ in range(20):
                watched.dog._topics_s = 0.0  # it asks anew, as often as in a minute of silence
                await asyncio.sleep(0.1)
            assert owner.lag == 10 and watched.said == []
            watched.dog._settings = here
            for _ in range(60):
                if watched.said:
                    break
                await asyncio.sleep(0.1)
        finally:
            looking.cancel()
    assert "has not moved" in watched.said[0]
