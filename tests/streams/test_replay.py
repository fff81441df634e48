"""Replay reads by position: transactions that were aborted, markers, and an end that is one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from kafka import KafkaAdminClient, TopicPartition  # type: ignore[import-untyped]

from livevalue.embedded import Stack
from livevalue.jobs.storing import archive_log
from scoring.generation import prior
from streams import broker, topics
from streams.codec import Codec
from streams.errors import LogTruncated, Stale
from streams.kafkalog import KafkaLog
from streams.replay import Step, kafka_steps, replay, scratch
from streams.settings import Settings
from tests.parity.onstack import replayed
from tests.streams.owning import START_MS, one_partition


async def transactions(settings: Settings) -> None:
    """Ten transactions of three events each; every other one is aborted, the last one too."""
    topic = settings.kafka.sources[0]
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka.bootstrap, transactional_id=f"{topic}-upstream"
    )
    await producer.start()
    try:
        for n in range(10):
            await producer.begin_transaction()
            for k in range(3):
                event = {
                    "type": "purchase",
                    "event_id": f"e{n}-{k}",
                    "user_id": f"u{k}",
                    "event_time": START_MS + n * 1000,
                    "amount": "1.00",
                }
                key = f"u{k}".encode()
                await producer.send(topic, json.dumps(event).encode(), key=key, partition=0)
            if n % 2:
                await producer.abort_transaction()
            else:
                await producer.commit_transaction()
    finally:
        await producer.stop()


def test_aborted_events_are_not_replayed_and_markers_end_no_reading(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    settings = one_partition(stack.bootstrap, topic_prefix)
    topics.apply(settings)
    asyncio.run(transactions(settings))

    async def fold(size: int) -> tuple[int, int, tuple[int, ...]]:
        pipeline = scratch(settings, prior(settings.model))
        async with KafkaLog(settings.kafka) as log:
            ends = await log.ends(0)
            steps = kafka_steps(log, Codec(settings), 0, None, ends, size=size)
            done = await replay(steps, pipeline)
        return done.events, done.applied, done.watermarks[0].positions

    # 30 records and 10 markers; the log ends with an aborted transaction and its marker.
    assert asyncio.run(fold(2000)) == (15, 15, (40,))
    assert asyncio.run(fold(1)) == (15, 15, (40,))
    assert asyncio.run(archive_log(settings, tmp_path / "kept"))["events"] == 15
    assert asyncio.run(archive_log(settings, tmp_path / "kept"))["files"] == 0
    from_archive = replayed(settings, tmp_path / "kept")
    assert (from_archive["applied"], from_archive["users"]) == (15, 3)


def test_a_log_that_lost_its_beginning_is_refused_and_says_what_to_do(
    stack: Stack, topic_prefix: str
) -> None:
    settings = one_partition(stack.bootstrap, topic_prefix)
    topics.apply(settings)
    asyncio.run(transactions(settings))

    async def fold() -> None:
        admin = KafkaAdminClient(**broker.connection(settings.kafka))
        try:
            admin.delete_records({TopicPartition(settings.kafka.sources[0], 0): 10})
        finally:
            admin.close()
        pipeline = scratch(settings, prior(settings.model))
        async with KafkaLog(settings.kafka) as log:
            ends = await log.ends(0)
            codec = Codec(settings)
            begun = await replay(kafka_steps(log, codec, 0, None, ends), pipeline)
            assert begun.applied == 10  # one is left of the third transaction, and three more
            steps = kafka_steps(log, codec, 0, None, ends, start=(3,))
            await replay(steps, scratch(settings, prior(settings.model)))

    with pytest.raises(LogTruncated, match="no longer holds offset 3"):
        asyncio.run(fold())


def test_two_replays_into_one_store_do_not_mix(stack: Stack, topic_prefix: str) -> None:
    settings = one_partition(stack.bootstrap, topic_prefix)
    topics.apply(settings)
    asyncio.run(transactions(settings))

    async def fold() -> None:
        pipeline = scratch(settings, prior(settings.model))
        async with KafkaLog(settings.kafka) as log:
            ends = await log.ends(0)
            steps = kafka_steps(log, Codec(settings), 0, None, ends, size=5)

            async def meddled() -> AsyncIterator[Step]:
                number = 0
                async for step in steps:
                    if number == 2:
                        await pipeline.store.claim(0)
                    number += 1
                    yield step

            await replay(meddled(), pipeline)

    with pytest.raises(Stale, match="another writer"):
        asyncio.run(fold())
