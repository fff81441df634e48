"""The stack as its users have it: it starts, keeps what it was told, and starts again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import redis
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition  # type: ignore[import-untyped]
from kafka.admin import NewTopic  # type: ignore[import-untyped]

from livevalue.embedded import Stack, StackError
from tests.embedded.conftest import eventually, servers_in


def _produce(stack: Stack, topic: str, *values: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=stack.bootstrap, acks="all")
    for value in values:
        producer.send(topic, value).get(timeout=20)
    producer.close()


def _values(stack: Stack, topic: str) -> list[bytes]:
    consumer = KafkaConsumer(bootstrap_servers=stack.bootstrap, auto_offset_reset="earliest")
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    end = consumer.end_offsets([partition])[partition]
    seen: list[bytes] = []
    give_up = time.monotonic() + 20
    while consumer.position(partition) < end and time.monotonic() < give_up:
        for records in consumer.poll(200).values():
            seen += [record.value for record in records]
    consumer.close()
    return seen


def _topic(stack: Stack, name: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=stack.bootstrap)
    admin.create_topics([NewTopic(name, 1, 1)], wait_for_metadata=True)
    admin.close()


async def test_a_warm_start_takes_at_most_five_seconds(folder: Path) -> None:
    began = time.monotonic()
    async with Stack(folder) as stack:
        took = time.monotonic() - began
        assert KafkaAdminClient(bootstrap_servers=stack.bootstrap).list_topics() == []
        assert redis.Redis.from_url(stack.redis_url).ping()
    # 5 s is the promise on a machine of its own; a busy one may take a little longer.
    assert took < 5 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_both_servers_listen_on_loopback_only(stack: Stack) -> None:
    assert stack.kafka is not None
    assert stack.valkey is not None
    for pid in (stack.kafka.pid, stack.valkey.pid):
        listening = [
            link.laddr.ip
            for link in psutil.Process(pid).net_connections("inet")
            if link.status == psutil.CONN_LISTEN
        ]
        assert listening
        assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


def test_data_and_ports_are_kept_over_a_restart(folder: Path) -> None:
    with Stack.started(folder) as stack:
        addresses = stack.bootstrap, stack.redis_url
        _topic(stack, "kept")
        _produce(stack, "kept", b"before")
        redis.Redis.from_url(stack.redis_url).set("kept", "yes")
    with Stack.started(folder) as stack:
        assert (stack.bootstrap, stack.redis_url) == addresses
        assert _values(stack, "kept") == [b"before"]
        assert redis.Redis.from_url(stack.redis_url).get("kept") == b"yes"


def test_killed_servers_come_back_with_what_they_acknowledged(folder: Path) -> None:
    with Stack.started(folder) as stack:
        assert stack.kafka is not None
        assert stack.valkey is not None
        client = redis.Redis.from_url(stack.redis_url)
        _topic(stack, "survives")
        _produce(stack, "survives", b"acknowledged")
        client.set("survives", "acknowledged")
        before = stack.bootstrap, stack.kafka.pid, stack.valkey.pid
        stack.kafka.kill()
        stack.valkey.kill()
        assert stack.kafka.pid == stack.valkey.pid == 0
        assert not psutil.pid_exists(before[1])
        began = time.monotonic()
        stack.valkey.start()
        stack.kafka.start()
        assert time.monotonic() - began < 20
        assert stack.bootstrap == before[0]
        assert stack.kafka.pid not in (0, before[1])
        assert _values(stack, "survives") == [b"acknowledged"]
        assert client.get("survives") == b"acknowledged"


def test_valkey_can_be_rolled_back_to_a_copy_of_its_files(folder: Path, tmp_path: Path) -> None:
    with Stack.started(folder) as stack:
        assert stack.valkey is not None
        client = redis.Redis.from_url(stack.redis_url)
        client.set("rolled", "old")
        os.kill(stack.valkey.pid, signal.SIGSTOP)
        shutil.copytree(stack.valkey.data, tmp_path / "copy")
        os.kill(stack.valkey.pid, signal.SIGCONT)
        client.set("rolled", "new")
        stack.valkey.kill()
        shutil.rmtree(stack.valkey.data)
        shutil.copytree(tmp_path / "copy", stack.valkey.data)
        stack.valkey.start()
        assert client.get("rolled") == b"old"


def test_a_frozen_broker_still_stops(folder: Path) -> None:
    with Stack.started(folder) as stack:
        assert stack.kafka is not None
        os.kill(stack.kafka.pid, signal.SIGSTOP)
    assert servers_in(folder) == []


def test_valkey_never_evicts_and_writes_through(stack: Stack) -> None:
    client = redis.Redis.from_url(stack.redis_url)
    config = client.config_get("maxmemory-policy", "appendonly", "appendfsync")
    assert config == {
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "always",
    }


def test_a_second_stack_on_the_same_folder_is_refused(folder: Path) -> None:
    with Stack.started(folder):
        began = time.monotonic()
        with (
            pytest.raises(StackError, match=rf"in use by a stack of process {os.getpid()}"),
            Stack.started(folder),
        ):
            pass
        assert time.monotonic() - began < 2
    with Stack.started(folder):
        pass


async def test_a_cancelled_start_leaves_nothing(folder: Path) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3), Stack(folder):
            pytest.fail("0.3 s is too short for a broker")
    assert eventually(lambda: servers_in(folder) == [], 10)
    async with Stack(folder):
        pass


def test_servers_that_run_already_are_not_started(stack: Stack, tmp_path: Path) -> None:
    given = {"bootstrap": stack.bootstrap, "redis_url": stack.redis_url}
    with Stack.started(tmp_path, **given) as pointed:  # type: ignore[arg-type]
        assert (pointed.kafka, pointed.valkey) == (None, None)
        assert (pointed.bootstrap, pointed.redis_url) == (stack.bootstrap, stack.redis_url)
        assert servers_in(tmp_path) == []
    assert stack.kafka is not None and stack.kafka.running


def test_an_address_before_the_start_is_an_error_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="enter it first"):
        _ = Stack(tmp_path).bootstrap
