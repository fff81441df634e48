"""A broker that comes back from a kill without a group coordinator: chaos restarts it, and counts.

What Kafka does now and then by itself is brought about here: its group coordinator cannot load
__consumer_offsets, and then answers NOT_COORDINATOR for good. A record that it cannot read stands
there, as none but an admin's client may write it.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from kafka.structs import OffsetAndMetadata  # type: ignore[import-untyped]

from benchmarks.chaos import faults
from benchmarks.chaos.faults import Faults
from livevalue.embedded import Stack
from streams import broker
from streams.connection import aiokafka_options
from tests.e2e.deployment import Deployment, deployment_settings

_OFFSETS = "__consumer_offsets"  # one partition, in the embedded broker
_OFFSET_OF_NOBODY = b"\x00\x01\xff"  # key of a committed offset, cut off in its group's name


def test_a_broker_without_a_group_coordinator_is_restarted_cleanly_and_counted(
    tmp_path: Path, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "_COORDINATOR_S", 5.0)
    with Stack.started(tmp_path / "stack") as stack:
        server = stack.kafka
        assert server is not None
        settings = deployment_settings(stack.bootstrap, stack.redis_url, topic_prefix)
        with Deployment(settings, tmp_path) as deployment:
            _commit(deployment)
            made = Faults(deployment, stack, tmp_path, random.Random(1), say=lambda text: None)
            began = server.pid
            assert made.look_at_coordinator() == ""
            assert (made.coordinators, server.pid) == (0, began)

            (log,) = (server.data / f"{_OFFSETS}-0").glob("*.log")
            readable = log.stat().st_size
            asyncio.run(_write_what_no_coordinator_reads(deployment))
            start, clean = server.start, []

            def start_anew() -> None:
                # Kafka leaves this file when it ends as it wants to.
                clean.append((server.data / ".kafka_cleanshutdown").exists())
                if clean[-1]:
                    os.truncate(log, readable)
                start()

            monkeypatch.setattr(server, "start", start_anew)
            bite = made.broker()
            assert bite.bit and bite.said.endswith(", restarted: no group coordinator")
            assert (made.coordinators, clean) == (1, [False, True])
            assert made.look_at_coordinator() == ""
            assert made.coordinators == 1


def _commit(deployment: Deployment) -> None:
    """An offset of the group, so that its coordinator has something to load."""
    kafka = deployment.settings.kafka
    consumer = KafkaConsumer(
        **broker.connection(kafka), group_id=kafka.app, enable_auto_commit=False
    )
    consumer.commit({TopicPartition(kafka.sources[0], 0): OffsetAndMetadata(0, "", -1)})
    consumer.close()


async def _write_what_no_coordinator_reads(deployment: Deployment) -> None:
    options = aiokafka_options(deployment.settings.kafka) | {"client_id": "__admin_client"}
    producer = AIOKafkaProducer(**options)
    await producer.start()
    try:
        await producer.send_and_wait(_OFFSETS, key=_OFFSET_OF_NOBODY, value=b"", partition=0)
    finally:
        await producer.stop()
