"""Reading the log directly: by positions, over markers and aborted records, never by timeouts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from aiokafka import (  # type: ignore[import-untyped]
    AIOKafkaConsumer,
    AIOKafkaProducer,
    TopicPartition,
)
from aiokafka.consumer.fetcher import Fetcher  # type: ignore[import-untyped]
from kafka import KafkaAdminClient  # type: ignore[import-untyped]
from kafka import TopicPartition as KafkaPython
from kafka.admin import NewTopic  # type: ignore[import-untyped]

from featurestore.store import Identity, Watermark
from livevalue.embedded import Stack
from streams import gap, kafkalog
from streams.emit import Published
from streams.errors import LogReset, LogTruncated, LogUnavailable
from streams.gap import Bounds, LogReader
from streams.logid import check_log, gone, record_mark, rewritten
from streams.settings import KafkaSettings
from streams.trail import Trail, cuts
from tests.compacting import SEGMENT_S, compact


@pytest.fixture
async def topic(stack: Stack, topic_prefix: str) -> TopicPartition:
    admin = KafkaAdminClient(bootstrap_servers=stack.bootstrap)
    admin.create_topics([NewTopic(f"{topic_prefix}gap", 1, 1)])
    admin.close()
    return TopicPartition(f"{topic_prefix}gap", 0)


@pytest.fixture
async def reader(stack: Stack) -> AsyncIterator[LogReader]:
    made = LogReader(KafkaSettings(bootstrap=stack.bootstrap))
    yield made
    await made.close()


async def produce(stack: Stack, topic: TopicPartition, *steps: tuple[int, bool]) -> None:
    """Transactions of so many records, committed or aborted; each takes one offset more."""
    producer = AIOKafkaProducer(
        bootstrap_servers=stack.bootstrap, transactional_id=f"{topic.topic}-up"
    )
    await producer.start()
    for count, commit in steps:
        await producer.begin_transaction()
        for n in range(count):
            await producer.send(topic.topic, b"%d" % n, partition=0)
        await (producer.commit_transaction() if commit else producer.abort_transaction())
    await producer.stop()


@pytest.mark.parametrize("of", [gap, kafkalog])
async def test_a_reader_that_is_stopped_while_it_connects_leaves_no_connection(
    stack: Stack,
    topic: TopicPartition,
    reader: LogReader,
    monkeypatch: pytest.MonkeyPatch,
    of: ModuleType,
) -> None:
    """As a publisher is that reads dead letters again while its partition is given away."""
    began: list[Slow] = []

    class Slow(AIOKafkaConsumer):  # type: ignore[misc]
        async def start(self) -> None:
            await super().start()
            began.append(self)
            await asyncio.sleep(60)

    async def ask() -> None:
        if of is gap:
            await reader.bounds([topic])
        else:
            await kafkalog.KafkaLog(KafkaSettings(bootstrap=stack.bootstrap)).__aenter__()

    monkeypatch.setattr(of, "AIOKafkaConsumer", Slow)
    asking = asyncio.create_task(ask())
    while not began:
        await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled() and began[0]._closed


async def test_a_read_reaches_its_end_over_markers_and_aborted_records(
    stack: Stack, topic: TopicPartition, reader: LogReader
) -> None:
    await produce(stack, topic, (3, True), (4, False), (2, True), (5, False))
    assert (await reader.bounds([topic]))[topic] == Bounds(0, 18)
    records, reached = await reader.read(topic, 1, 18, 1000)
    assert ([r.offset for r in records], reached) == ([1, 2, 9, 10], 18)
    records, reached = await reader.read(topic, 0, 18, 2)
    assert ([r.offset for r in records], reached) == ([0, 1], 2)
    assert await reader.read(topic, 7, 7, 10) == ([], 7)


async def test_nothing_is_fetched_that_nobody_asks_for(
    stack: Stack, topic: TopicPartition, reader: LogReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that holds such a fetch back answers nothing else on the connection meanwhile."""
    await produce(stack, topic, (5, True))
    fetches, fetch = list[float](), Fetcher._proc_fetch_request

    async def counted(self: Fetcher, *what: Any) -> Any:
        fetches.append(asyncio.get_running_loop().time())
        return await fetch(self, *what)

    monkeypatch.setattr(Fetcher, "_proc_fetch_request", counted)
    assert len((await reader.read(topic, 0, 6, 100))[0]) == 5
    asked = len(fetches)
    await asyncio.sleep(1.0)
    assert len(fetches) <= asked + 1  # it may have been on its way
    assert len((await reader.read(topic, 3, 6, 100))[0]) == 2


async def test_single_records_are_read_in_runs_and_what_is_gone_is_left_out(
    stack: Stack, topic: TopicPartition, reader: LogReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    await produce(stack, topic, (300, True), (40, False), (300, True))
    reads: list[tuple[int, int]] = []
    read = LogReader.read

    async def counted(self: LogReader, tp: TopicPartition, low: int, high: int, most: int) -> Any:
        reads.append((low, high))
        return await read(self, tp, low, high, most)

    monkeypatch.setattr(LogReader, "read", counted)
    # 300 and 341 are markers, 320 was aborted.
    wanted = [*range(0, 640, 5), 320, 641]
    found = await reader.these(topic, reversed(wanted))
    assert sorted(found) == [n for n in wanted if n < 300 or 342 <= n < 642]
    assert all(record.offset == offset for offset, record in found.items())
    assert len(reads) == 1
    # Without the log's beginning: what it still holds.
    reads.clear()
    admin = KafkaAdminClient(bootstrap_servers=stack.bootstrap)
    admin.delete_records({KafkaPython(topic.topic, 0): 350})
    admin.close()
    assert sorted(await reader.these(topic, [5, 10, 345, 350, 360])) == [350, 360]
    assert len(reads) <= 3
    assert await reader.these(topic, []) == {}


async def test_the_last_record_is_found_behind_any_number_of_aborted_ones(
    stack: Stack, topic: TopicPartition, reader: LogReader
) -> None:
    assert await reader.last(topic) is None
    await produce(stack, topic, (1, True), *[(30, False)] * 8)
    found = await reader.last(topic)
    assert found is not None and found.offset == 0


async def test_a_single_record_is_read_by_offset_and_a_marker_is_none(
    stack: Stack, topic: TopicPartition, reader: LogReader
) -> None:
    await produce(stack, topic, (2, True))
    found = await reader.these(topic, [1, 2])
    assert [r.value for r in found.values()] == [b"1"] and list(found) == [1]


async def test_a_log_that_holds_another_record_or_none_where_one_was_folded_is_another_log(
    stack: Stack, topic: TopicPartition, reader: LogReader
) -> None:
    await produce(stack, topic, (3, True), (2, False), (2, True))  # 3, 6 and 9 are markers
    held = (await reader.bounds([topic]))[topic]
    known = record_mark((await reader.these(topic, [2]))[2])
    wrong = {2: False, 1: True, 3: True, 4: True, 9: True, 10: True, 400: True}
    for offset, other in wrong.items():
        mark = known.replace("2:", f"{offset}:", 1)
        assert await rewritten(reader, topic, mark, held) is other, offset
        # Of a compacted topic a hole tells nothing; another record and the log's end do.
        told = other and offset in (1, 10, 400)
        assert await rewritten(reader, topic, mark, held, compacted=True) is told, offset
        folded = Watermark((offset + 1,), (0,), Identity(1, "w"), "a", (mark,), "f", "g")
        if other:
            with pytest.raises(LogReset):
                await check_log(reader, [topic], folded, None, "a", [held])
            if not told:
                await check_log(reader, [topic], folded, None, "a", [held], {topic.topic})
        else:
            await check_log(reader, [topic], folded, None, "a", [held])
    # Redis was rolled back, to before what was published: the log must reach that, too, unless
    # the store knows of the publication (a recovery may have set its positions back).
    folded = Watermark((3,), (0,), Identity(1, "w"), "a", (known,), "f", "g")
    beyond = Published(Identity(5, "w"), (held.end + 1,), "a")
    with pytest.raises(LogReset, match=str(held.end + 1)):
        await check_log(reader, [topic], folded, beyond, "a", [held])
    knowing = replace(folded, published=beyond.identity)
    await check_log(reader, [topic], knowing, beyond, "a", [held])
    with pytest.raises(LogReset):  # published from another log, into a store that holds nothing
        await check_log(reader, [topic], None, replace(beyond, log_id="b"), "a", [held])
    assert not await rewritten(reader, topic, "", held)
    # What retention has deleted tells nothing, though it does so after we have asked for the start.
    admin = KafkaAdminClient(bootstrap_servers=stack.bootstrap)
    admin.delete_records({KafkaPython(topic.topic, 0): 5})
    admin.close()
    assert not await rewritten(reader, topic, known, held)
    assert not await rewritten(reader, topic, known, (await reader.bounds([topic]))[topic])


async def test_what_was_read_after_the_bounds_were_asked_for_is_not_gone(
    stack: Stack, topic: TopicPartition, reader: LogReader
) -> None:
    await produce(stack, topic, (3, True))
    held = (await reader.bounds([topic]))[topic]
    await produce(stack, topic, (3, True))
    later = record_mark((await reader.these(topic, [5]))[5])
    assert held.end <= 5
    assert await gone(reader, topic, [later], held) == []
    # Nor has a log been cut of which more is delivered while its claim asks.
    trail = Trail()
    trail.recall(f"0 {later}")
    assert await cuts(reader, [topic], [trail], {0: 1}, [held]) == {}
    trail.recall(f"0 {later.replace('5:', '50:', 1)}")
    assert await cuts(reader, [topic], [trail], {0: 1}, [held]) == {0: 1}


async def test_what_compaction_took_is_read_over_wherever_it_lay(
    stack: Stack, topic: TopicPartition, reader: LogReader
) -> None:
    admin = KafkaAdminClient(bootstrap_servers=stack.bootstrap)
    compact(admin, [topic.topic])
    admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=stack.bootstrap)
    await producer.start()
    # The head, the middle of a fetch, and all of a run of single records.
    for n in [0, 0, 1, 2, 2, 2, 3, 4, 3, 4]:
        await producer.send_and_wait(topic.topic, b"x", key=b"%d" % n, partition=0)
    for n in (5, 6):
        await asyncio.sleep(1.5 * SEGMENT_S)
        await producer.send_and_wait(topic.topic, b"x", key=b"%d" % n, partition=0)
    await producer.stop()
    left = [1, 2, 5, 8, 9, 10, 11]
    async with asyncio.timeout(30):
        while [r.offset for r in (await reader.read(topic, 0, 12, 100))[0]] != left:
            await asyncio.sleep(0.2)
    assert (await reader.bounds([topic]))[topic] == Bounds(0, 12)
    assert await reader.read(topic, 3, 5, 100) == ([], 5)
    records, reached = await reader.read(topic, 0, 8, 3)
    assert ([r.offset for r in records], reached) == ([1, 2, 5], 6)
    # Dead letters that are read again: those that are not found go out as `gone`.
    assert sorted(await reader.these(topic, [0, 2, 3, 4, 6, 7, 9])) == [2, 9]
    assert await reader.these(topic, [6, 7]) == {}
    found = await reader.last(topic, before=8)
    assert found is not None and found.offset == 5


async def test_what_retention_deleted_is_an_error_and_never_skipped(
    stack: Stack, topic: TopicPartition, reader: LogReader
) -> None:
    await produce(stack, topic, (5, True))
    admin = KafkaAdminClient(bootstrap_servers=stack.bootstrap)
    from kafka import TopicPartition as AdminPartition

    admin.delete_records({AdminPartition(topic.topic, 0): 3})
    admin.close()
    with pytest.raises(LogTruncated, match="livevalue recover rebuild"):
        await reader.read(topic, 1, 5, 10)
    assert await reader.these(topic, [1]) == {}
    records, reached = await reader.read(topic, 3, 6, 10)
    assert ([r.offset for r in records], reached) == ([3, 4], 6)


async def test_a_broker_that_is_not_there_is_unavailable_and_names_the_address() -> None:
    reader = LogReader(KafkaSettings(bootstrap="127.0.0.1:9"))
    with pytest.raises(LogUnavailable, match=r"127\.0\.0\.1:9"):
        await reader.bounds([TopicPartition("events", 0)])


async def test_stopping_a_reader_at_once_does_not_cancel_who_stops_it(stack: Stack) -> None:
    for _ in range(20):
        reader = LogReader(KafkaSettings(bootstrap=stack.bootstrap))
        await reader._open()
        await reader.close()
    await asyncio.sleep(0)
