"""The transport on a real broker: whole fetches, true positions, late acknowledgements."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import faust
import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from faust.types import TP
from kafka import KafkaAdminClient, TopicPartition  # type: ignore[import-untyped]
from kafka.admin import NewTopic  # type: ignore[import-untyped]

from livevalue.embedded import Stack
from streams import transport
from streams.settings import KafkaSettings

PARTITIONS = 2


class Listener:
    """A Faust app whose agent keeps every poll that it is given."""

    def __init__(self, kafka: KafkaSettings, channel_size: int = 8) -> None:
        self.polls: list[transport.Poll] = []
        self.assigned = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()
        self.app = app = faust.App(
            kafka.app,
            broker=f"{transport.SCHEME}://{kafka.bootstrap}",
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            topic_partitions=PARTITIONS,
            broker_commit_interval=0.2,
            datadir=str(Path(tempfile.gettempdir()) / kafka.app),  # not where the tests are run
            stream_wait_empty=False,
        )
        channel = app.channel(maxsize=channel_size)
        transport.bind(app, channel, kafka, 1000)
        self.topics = aiter(app.topic(*kafka.sources, value_serializer="raw"))

        @app.agent(channel)
        async def listen(stream: Any) -> None:
            async for poll in stream:
                await self.open.wait()
                self.polls.append(poll)

        @app.on_partitions_assigned.connect
        async def on_assigned(sender: Any, /, *args: Any, signal: Any, **_: Any) -> None:
            self.assigned.set()

    async def __aenter__(self) -> Listener:
        self.app.finalize()
        self.app.worker_init()
        await self.app.start()
        await asyncio.wait_for(self.assigned.wait(), 20)
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.app.stop()

    def segments(self, topic: str, partition: int) -> list[Any]:
        return [
            s
            for poll in self.polls
            for tp, s in poll.segments.items()
            if (tp.topic, tp.partition) == (topic, partition)
        ]

    async def until(self, position: int, topic: str, partition: int) -> list[Any]:
        for _ in range(400):
            found = self.segments(topic, partition)
            if found and found[-1].after >= position:
                return found
            await asyncio.sleep(0.025)
        raise AssertionError(f"{topic}/{partition} stays before {position}: {found}")


@pytest.fixture
def kafka(stack: Stack, topic_prefix: str) -> KafkaSettings:
    kafka = KafkaSettings(
        bootstrap=stack.bootstrap,
        app=f"{topic_prefix}app",
        browse=f"{topic_prefix}browse",
        purchase=f"{topic_prefix}purchase",
        interaction=f"{topic_prefix}interaction",
        partitions=PARTITIONS,
    )
    admin = KafkaAdminClient(bootstrap_servers=stack.bootstrap)
    admin.create_topics([NewTopic(t, PARTITIONS, 1) for t in kafka.sources])
    admin.close()
    return kafka


@contextlib.asynccontextmanager
async def producer(kafka: KafkaSettings, **more: Any) -> AsyncIterator[AIOKafkaProducer]:
    made = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, **more)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def test_polls_say_from_where_to_where_and_markers_move_the_position(
    kafka: KafkaSettings,
) -> None:
    async with producer(kafka) as plain:
        for n in range(10):
            await plain.send_and_wait(kafka.browse, b"%d" % n, partition=1)
    async with producer(kafka, transactional_id=f"{kafka.app}-up") as upstream:
        await upstream.begin_transaction()
        await upstream.send(kafka.browse, b"aborted", partition=1)
        await upstream.abort_transaction()  # record 10, marker 11
        async with upstream.transaction():
            await upstream.send(kafka.browse, b"kept", partition=1)  # record 12, marker 13
    async with Listener(kafka) as listener:
        found = await listener.until(14, kafka.browse, 1)
        values = [r.value for s in found for r in s.records]
        assert values == [*(b"%d" % n for n in range(10)), b"kept"]
        for earlier, later in itertools.pairwise(found):
            assert later.before == earlier.after
        assert found[-1].after == 14 and found[-1].end == 14
        # An aborted transaction alone is delivered too: its position moved.
        count = len(found)
        async with producer(kafka, transactional_id=f"{kafka.app}-up") as upstream:
            await upstream.begin_transaction()
            await upstream.send(kafka.browse, b"aborted", partition=1)
            await upstream.abort_transaction()
        found = await listener.until(16, kafka.browse, 1)
        assert [r for s in found[count:] for r in s.records] == []


async def test_only_what_is_acknowledged_is_committed_in_the_order_of_the_log(
    kafka: KafkaSettings,
) -> None:
    async with producer(kafka) as plain, Listener(kafka) as listener:
        faust_consumer: Any = listener.app.consumer
        consumer = faust_consumer.aiokafka_consumer
        tp = TP(kafka.purchase, 0)

        async def committed() -> Any:
            return await faust_consumer._thread.call_thread(consumer.committed, tp)

        for n in range(3):
            await plain.send_and_wait(kafka.purchase, b"%d" % n, partition=0)
            await listener.until(n + 1, kafka.purchase, 0)
        first, *others = listener.segments(kafka.purchase, 0)
        for segment in others:
            segment.ack()
        await asyncio.sleep(0.6)
        assert await committed() is None
        first.ack()
        for _ in range(100):
            if await committed() == 3:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"committed {await committed()}, not 3")


async def test_a_rebalance_with_a_full_channel_loses_nothing_that_was_not_acknowledged(
    kafka: KafkaSettings,
) -> None:
    total = 60
    async with producer(kafka) as plain, Listener(kafka, channel_size=1) as first:
        first.open.clear()
        for n in range(total):
            await plain.send_and_wait(kafka.interaction, b"%d" % n, partition=n % 2)
        async with Listener(kafka) as second:
            first.open.set()
            seen: set[bytes | None] = set()
            for _ in range(400):
                seen = {
                    r.value
                    for listener in (first, second)
                    for poll in listener.polls
                    for s in poll.segments.values()
                    for r in s.records
                }
                if len(seen) == total:
                    break
                await asyncio.sleep(0.05)
            assert seen == {b"%d" % n for n in range(total)}
            held = [
                {tp.partition for tp in app.consumer.assignment()}
                for app in (first.app, second.app)
            ]
            assert held[0] | held[1] == {0, 1} and not held[0] & held[1]
            # Co-partitioned: the same partition number of every topic.
            for app in (first.app, second.app):
                by_topic: dict[str, set[int]] = {}
                for tp in app.consumer.assignment():
                    by_topic.setdefault(tp.topic, set()).add(tp.partition)
                assert len({frozenset(v) for v in by_topic.values()}) == 1


async def test_a_jump_over_what_retention_deleted_is_vouched_for_by_nobody(
    kafka: KafkaSettings,
) -> None:
    here = TopicPartition(kafka.browse, 0)
    async with producer(kafka) as plain, Listener(kafka, channel_size=1) as listener:

        async def send(count: int) -> None:
            for _ in range(count):
                await plain.send_and_wait(kafka.browse, b"x", partition=0)

        await send(5)
        await listener.until(5, kafka.browse, 0)
        listener.open.clear()
        for _ in range(4):  # what the agent holds, the channel, who puts, and the driver's own
            await send(5)
            await asyncio.sleep(0.3)
        await send(10)
        admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        admin.delete_records({here: 32})
        admin.close()
        listener.open.set()
        found = await listener.until(35, kafka.browse, 0)
        seen = {r.offset for s in found for r in s.records}
        assert not seen & set(range(25, 32)) and seen >= {32, 33, 34}
        for segment in found:
            if segment.before is not None:
                lost = set(range(segment.before, segment.after)) - seen
                assert not lost, (segment.before, segment.after)
