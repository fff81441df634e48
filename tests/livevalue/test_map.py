"""`livevalue map`: a file without a broker, and a vendor's topic into ours on real Kafka."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition  # type: ignore[import-untyped]
from kafka.admin import KafkaAdminClient, NewTopic  # type: ignore[import-untyped]

from featurestore.partitioner import partition
from livevalue.embedded import Stack
from streams import topics
from streams.settings import KafkaSettings
from tests import forks
from tests.livevalue.mapped import GOLDEN, messages, track
from tests.livevalue.values import settings

ROOT = Path(__file__).resolve().parents[2]


def _environment(more: dict[str, str]) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith("LIVEVALUE_")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def _run(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return forks.run(["map", *arguments], cwd=cwd, env=_environment(environment), timeout=120)


def test_a_dry_run_of_a_file_needs_no_broker(tmp_path: Path) -> None:
    source = str(GOLDEN / "segment.in.jsonl")
    done = _run(tmp_path, "--source", source, "--as", "segment", "--dry-run", "--json", "out.json")
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "out.json").read_text())
    assert said["messages"] == len(messages("segment"))
    assert sum(said[status] for status in ("mapped", "ignored", "anonymous", "parked")) == 55
    assert 0 < len(said["worst"]) <= 10
    assert "refund_without_amount" in said["reasons"]
    assert "change: " in done.stdout
    assert "55 messages: " in done.stdout
    assert "would be mapped" in done.stdout
    one = _run(tmp_path, "--source", source, "--as", "segment", "--dry-run", "--limit", "1")
    assert "1 message: 1 event would be mapped, 0 ignored" in one.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--as", "segment"), 2),
        (("--source", "kafka:", "--as", "segment"), 2),
        (("--source", "x.jsonl", "--as", "segment", "--currency", "eur"), 2),
        (("--source", "x.jsonl", "--as", "amplitude", "--dry-run"), 1),
        (("--source", "x.jsonl", "--as", "segment", "--dry-run"), 1),
        (("--source", "x.csv", "--as", "segment", "--dry-run"), 1),
        (("--source", "kafka:theirs", "--as", "segment"), 1),
    ],
)
def test_wrong_usage_says_what_to_do(tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    done = _run(tmp_path, *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.startswith("livevalue: ")
        assert "[Errno" not in done.stderr


def _read(bootstrap: str, topic: str) -> list[Any]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed")
    try:
        tps = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
        consumer.assign(tps)
        consumer.seek_to_beginning(*tps)
        ends, found = consumer.end_offsets(tps), []
        while any(consumer.position(tp) < ends[tp] for tp in tps):
            found += [record for got in consumer.poll(500).values() for record in got]
        return found
    finally:
        consumer.close()


def _deployed(stack: Stack, prefix: str) -> tuple[KafkaSettings, str, dict[str, str]]:
    """A deployment with its topics made, a vendor's topic of two partitions, the environment."""
    found = settings(stack.bootstrap, stack.redis_url, 10, prefix)
    topics.apply(found)
    kafka, theirs = found.kafka, f"{prefix}theirs"
    given_ = ("bootstrap", "browse", "purchase", "interaction", "scores", "dlq", "partitions")
    environment = {f"LIVEVALUE_KAFKA__{name.upper()}": str(getattr(kafka, name)) for name in given_}
    environment["LIVEVALUE_KAFKA__APP"] = prefix.rstrip(".")
    admin = KafkaAdminClient(bootstrap_servers=stack.bootstrap)
    admin.create_topics([NewTopic(theirs, 2, 1)], wait_for_metadata=True)
    admin.close()
    return kafka, theirs, environment


def test_a_topic_is_mapped_resumed_and_followed_until_sigterm(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    kafka, theirs, environment = _deployed(stack, topic_prefix)
    lines = messages("segment")
    producer = KafkaProducer(bootstrap_servers=stack.bootstrap, acks="all")

    def send(raw: bytes, partition: int) -> None:
        producer.send(
            theirs, raw, key=b"vendor", partition=partition, headers=[("trace", b"t")]
        ).get(30)

    for at, raw in enumerate([*lines, b"no json"]):
        send(raw, at % 2)
    asked = ("--source", f"kafka:{theirs}", "--as", "segment")

    dry = _run(tmp_path, *asked, "--dry-run", "--json", "dry.json", **environment)
    assert dry.returncode == 0, dry.stderr
    assert all(_read(stack.bootstrap, topic) == [] for topic in (*kafka.sources, kafka.dlq))

    done = _run(tmp_path, *asked, "--until-end", "--json", "out.json", **environment)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "out.json").read_text())
    assert said["messages"] == len(lines) + 1
    assert json.loads((tmp_path / "dry.json").read_text())["messages"] == said["messages"]
    produced = [record for topic in kafka.sources for record in _read(stack.bootstrap, topic)]
    assert len(produced) == said["mapped"]
    for record in produced:
        event = json.loads(record.value)
        assert record.key == event["user_id"].encode()
        assert record.partition == partition(record.key, kafka.partitions)
        assert record.topic == getattr(kafka, event["type"])
    letters = _read(stack.bootstrap, kafka.dlq)
    assert len(letters) == said["parked"]
    (broken,) = (letter for letter in letters if letter.value == b"no json")
    headers = dict(broken.headers)
    assert broken.key == b"vendor"
    assert headers["trace"] == b"t"
    assert headers["__connect.errors.stage"] == b"MAP"
    assert headers["__connect.errors.topic"] == theirs.encode()
    assert headers["__connect.errors.exception.class.name"] == b"livevalue.not_json"

    again = _run(tmp_path, *asked, "--until-end", "--json", "again.json", **environment)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again.json").read_text())["messages"] == 0

    following = subprocess.Popen(
        [sys.executable, "-m", "livevalue.cli", "map", *asked, "--json", "last.json"],
        cwd=tmp_path,
        env=_environment(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        send(track("Product Added", {"messageId": "late"}, product_id="p"), 0)
        ends = time.monotonic() + 60
        while time.monotonic() < ends and following.poll() is None:
            if any(b'"late"' in r.value for r in _read(stack.bootstrap, kafka.interaction)):
                break
            time.sleep(0.3)
        following.send_signal(signal.SIGTERM)
        _, complaints = following.communicate(timeout=60)
    finally:
        following.kill()
        producer.close()
    assert following.returncode == 0, complaints
    assert json.loads((tmp_path / "last.json").read_text())["mapped"] == 1


@pytest.mark.slow
def test_a_mapper_that_is_killed_leaves_no_message_out(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    kafka, theirs, environment = _deployed(stack, topic_prefix)
    many = 12_000
    producer = KafkaProducer(bootstrap_servers=stack.bootstrap, acks="all", linger_ms=20)
    for at in range(many):
        producer.send(theirs, track("Product Added", {"messageId": str(at)}), partition=at % 2)
    producer.flush(60)
    producer.close()
    asked = ("--source", f"kafka:{theirs}", "--as", "segment", "--until-end")
    killed = subprocess.Popen(
        [sys.executable, "-m", "livevalue.cli", "map", *asked],
        cwd=tmp_path,
        env=_environment(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ends = time.monotonic() + 60
    while time.monotonic() < ends and not _read(stack.bootstrap, kafka.interaction):
        time.sleep(0.05)
    killed.kill()
    killed.wait(30)
    before = len(_read(stack.bootstrap, kafka.interaction))
    done = _run(tmp_path, *asked, "--json", "out.json", **environment)
    assert done.returncode == 0, done.stderr
    produced = [json.loads(r.value)["event_id"] for r in _read(stack.bootstrap, kafka.interaction)]
    assert set(produced) == {str(at) for at in range(many)}
    assert 0 < before < many
