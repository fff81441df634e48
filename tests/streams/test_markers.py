"""A transaction's marker that Kafka has really emptied, through both drivers."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.consumer import fetcher  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from kafka import KafkaAdminClient, KafkaConsumer  # type: ignore[import-untyped]
from kafka import TopicPartition as Place
from kafka.admin import NewTopic  # type: ignore[import-untyped]

from livevalue.embedded import Stack
from streams import broker, markers
from streams.connection import stop
from streams.gap import LogReader
from streams.settings import KafkaSettings
from tests.compacting import SEGMENT_S, compact

_CONTROL = 0x20


def records_of_markers(folder: Path) -> list[int]:
    """How many records each control batch of a log holds (record format 2)."""
    found = []
    for segment in sorted(folder.glob("*.log")):
        raw, at = segment.read_bytes(), 0
        while at + 61 <= len(raw):
            (length,) = struct.unpack_from(">i", raw, at + 8)
            (attributes,) = struct.unpack_from(">h", raw, at + 21)
            (count,) = struct.unpack_from(">i", raw, at + 57)
            found += [count] if attributes & _CONTROL else []
            at += 12 + length
    return found


async def emptied(stack: Stack, topic: str, data: Path) -> None:
    """A producer dies amid a transaction; its marker is compacted; others go on."""
    producers = [
        AIOKafkaProducer(bootstrap_servers=stack.bootstrap, transactional_id=transactional)
        for transactional in (f"{topic}-up", f"{topic}-up", None)
    ]
    dead, again, other = producers
    await dead.start()
    await dead.begin_transaction()
    await dead.send_and_wait(topic, b"aborted", key=b"k", partition=0)
    await again.start()
    await other.start()
    async with asyncio.timeout(30):
        while records_of_markers(data / f"{topic}-0") != [0]:
            await asyncio.sleep(1.5 * SEGMENT_S)
            await other.send_and_wait(topic, b"y", key=b"z", partition=0)
    for producer in producers:
        await stop(producer)


async def test_a_marker_that_was_compacted_away_stops_no_reader(
    stack: Stack, topic_prefix: str
) -> None:
    assert stack.kafka is not None
    topic = f"{topic_prefix}emptied"
    admin = KafkaAdminClient(bootstrap_servers=stack.bootstrap)
    admin.create_topics([NewTopic(topic, 1, 1)])
    compact(admin, [topic])
    admin.close()
    await emptied(stack, topic, stack.kafka.data)

    settings = KafkaSettings(bootstrap=stack.bootstrap)
    reader, tp = LogReader(settings), TopicPartition(topic, 0)
    try:
        end = (await reader.bounds([tp]))[tp].end
        records, reached = await reader.read(tp, 0, end, 1000)
    finally:
        await reader.close()
    assert reached == end
    assert records and {r.value for r in records} == {b"y"}

    consumer = KafkaConsumer(**broker.connection(settings), isolation_level="read_committed")
    consumer.assign([Place(topic, 0)])
    consumer.seek(Place(topic, 0), 0)
    while consumer.position(Place(topic, 0)) < end:
        assert {r.value for page in consumer.poll(500).values() for r in page} <= {b"y"}
    consumer.close()


def test_the_drivers_are_the_ones_that_were_looked_into() -> None:
    """Where they mend it, markers.py can go."""
    ours = fetcher.PartitionRecords._contains_abort_marker
    assert ours is markers._aiokafka

    class Empty:
        is_control_batch = True

        def __next__(self) -> None:
            raise StopIteration

    with pytest.raises(KafkaError, match="did not contain any records"):
        markers._of_aiokafka(None, Empty())
    with pytest.raises(StopIteration):
        markers._of_kafka_python(None, Empty())
