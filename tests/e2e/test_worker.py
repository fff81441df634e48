"""One or two workers on real Kafka and Valkey, seen from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest
from kafka import KafkaAdminClient  # type: ignore[import-untyped]

from featurestore.partitioner import partition
from livevalue.embedded import Stack
from streams import broker
from tests.e2e.deployment import (
    ROOT,
    START_MS,
    Deployment,
    deployment_settings,
    environment,
    send_all,
    some_events,
)
from tests.e2e.losses import noticed

_databases = count(0)


@pytest.fixture
def deployment(stack: Stack, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    # Keys of a deployment begin with lv: so each test takes a Redis database of its own.
    url = stack.redis_url.rsplit("/", 1)[0] + f"/{1 + next(_databases) % 12}"
    settings = deployment_settings(stack.bootstrap, url, topic_prefix)
    with Deployment(settings, tmp_path) as made:
        yield made


def test_events_become_documents_that_are_equal_in_redis_and_on_scores(
    deployment: Deployment,
) -> None:
    send_all(deployment, list(some_events(3000, 100)))
    worker = deployment.start()
    deployment.settle()
    found = deployment.audit()
    assert found.clean, found
    assert (found.events, found.users) == (3000, 100)
    # And live: what comes later is folded too.
    send_all(deployment, list(some_events(500, 120, seed=2, first=3000)))
    deployment.settle()
    found = deployment.audit()
    assert found.clean, found
    assert found.events == 3500
    assert worker.stop() == 0


def test_sigterm_finishes_publishes_and_exits_0_and_a_restart_goes_on(
    deployment: Deployment,
) -> None:
    send_all(deployment, list(some_events(6000, 200)))
    worker = deployment.start()
    while not deployment.watermarks():
        time.sleep(0.02)
    assert worker.stop() == 0
    before = deployment.positions()
    for mark in deployment.watermarks().values():
        assert mark["published"] == f"{mark['seq']}:{mark['writer']}"
    deployment.start("w1")
    deployment.settle()
    found = deployment.audit()
    assert found.clean, found
    assert all(deployment.positions()[at] >= was for at, was in before.items())


def test_a_killed_worker_is_taken_over_and_nothing_is_lost_or_doubled(
    deployment: Deployment,
) -> None:
    events = list(some_events(6000, 200))
    send_all(deployment, events[:2000])
    first, second = deployment.start("w0"), deployment.start("w1")
    deployment.settle()
    send_all(deployment, events[2000:4000])
    first.kill()
    send_all(deployment, events[4000:])
    deployment.settle()
    found = deployment.audit()
    assert found.clean, found
    assert found.events == 6000
    second.signal(signal.SIGTERM)
    assert second.wait(30) == 0


def test_bad_records_become_dead_letters_with_raw_bytes_and_harm_no_neighbour(
    deployment: Deployment,
) -> None:
    def purchase(name: str, **more: object) -> bytes:
        event = {
            "event_id": name,
            "user_id": "ada",
            "event_time": START_MS,
            "amount": "2.00",
        }
        return json.dumps(event | more).encode()

    nested = b'{"event_id":"n","user_id":"ada","event_time":1,"amount":"1","properties":'
    bad: dict[str, list[bytes]] = {
        "not_json": [b"{broken", b"", b"\xff\xfe", purchase("nan").replace(b'"2.00"', b"NaN")],
        "not_object": [b"[1]", b"null", b'"text"'],
        "missing_field": [b'{"user_id":"ada"}'],
        "invalid_field": [
            purchase("a", event_time="yesterday"),
            purchase("b", amount=True),
            purchase("c").replace(b'"2.00"', b"1e999"),
        ],
        "wrong_key": [purchase("d", user_id="bob")],
        "unknown_currency": [purchase("e", currency="JPY")],
        "too_large": [purchase("f", properties={"x": "y" * (2 << 20)})],
        "future": [purchase("g", event_time=4_000_000_000_000)],
    }
    deep = nested + b"[" * 2000 + b"]" * 2000 + b"}"
    count = 0
    for values in [*bad.values(), [deep]]:
        for value in values:
            deployment.send_raw(1, b"ada", value)
            deployment.send_raw(1, b"ada", purchase(f"good{count}"))
            count += 1
    deployment.send_raw(1, b"ada", purchase("good0", amount="7.00"))  # known id, other content
    deployment.send_raw(1, None, purchase("keyless"))
    deployment.flush()
    deployment.start()
    deployment.settle()

    found: dict[str, list[bytes]] = {}
    for letter in deployment.read(deployment.settings.kafka.dlq):
        headers = dict(letter.headers)
        reason = headers["__connect.errors.exception.class.name"].decode()
        found.setdefault(reason.removeprefix("livevalue."), []).append(letter.value)
        assert headers["__connect.errors.topic"] == deployment.sources[1].encode()
        assert headers["__connect.errors.exception.message"]
        assert headers["livevalue.raw"] == b"whole"
    bad["conflict"] = [purchase("good0", amount="7.00")]
    bad["wrong_key"].append(purchase("keyless"))
    deep_reason = next(reason for reason, values in found.items() if deep in values)
    assert deep_reason in ("not_json", "invalid_field")
    found[deep_reason].remove(deep)
    assert {k: sorted(v) for k, v in found.items()} == {k: sorted(v) for k, v in bad.items()}
    p = partition("ada", 2, deployment.settings.kafka.partitioner)
    document = json.loads(deployment.redis.get(f"lv:{{{p}}}:v:ada") or b"{}")
    assert document["history"]["orders"] == count
    assert document["history"]["spent"] == 2.0 * count


def test_an_erased_user_leaves_no_document_and_a_tombstone(deployment: Deployment) -> None:
    send_all(deployment, list(some_events(500, 5)))
    deployment.start()
    deployment.settle()
    for source in range(3):
        deployment.send_raw(source, b"u3", None)
    deployment.flush()
    deployment.settle()
    p = partition("u3", 2, deployment.settings.kafka.partitioner)
    assert deployment.redis.get(f"lv:{{{p}}}:v:u3") is None
    scores = deployment.read(deployment.settings.kafka.scores)
    assert [r.value for r in scores if r.key == b"u3"][-1] is None
    assert json.loads([r.value for r in scores if r.key == b"u2"][-1])["user_id"] == "u2"


def test_a_worker_serves_metrics_and_says_that_it_is_ready(deployment: Deployment) -> None:
    send_all(deployment, list(some_events(1000, 50)))
    deployment.forks = False  # from nothing: what it loads is looked at
    worker = deployment.start()
    deployment.settle()
    (line,) = worker.lines("serving metrics")
    base = line["url"].removesuffix("/metrics")
    with urllib.request.urlopen(line["url"], timeout=5) as answer:
        metrics = {
            name: float(value)
            for name, value in (
                text.rsplit(" ", 1)
                for text in answer.read().decode().splitlines()
                if text[0] != "#"
            )
        }
    assert metrics['livevalue_events_total{outcome="applied"}'] == 1000
    assert metrics["livevalue_freshness_seconds_count"] == 1000
    assert metrics["livevalue_partitions"] == 2
    assert metrics['livevalue_lag_records{partition="0"}'] == 0
    with urllib.request.urlopen(f"{base}/livez", timeout=5) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(f"{base}/readyz", timeout=5) as answer:
        assert answer.read() == b"ready: 2\n"
    # It has claimed, folded and scored by now: whatever it will ever load is loaded.
    assert worker.loads("_multiarray_umath") and not worker.loads("libtorch")


def test_a_topic_that_vanishes_ends_the_worker_with_one_clear_line(deployment: Deployment) -> None:
    send_all(deployment, list(some_events(200, 20)))
    worker = deployment.start()
    deployment.settle()
    admin = KafkaAdminClient(**broker.connection(deployment.settings.kafka))
    admin.delete_topics([deployment.sources[0]])
    gone = datetime.now(UTC)
    admin.close()
    assert worker.wait(60) == 1
    said = worker.log.read_text().splitlines()[-1]
    assert deployment.sources[0] in said and "livevalue topics --apply" in said
    noticed(worker.lines("giving up"), gone)


def test_the_faust_command_runs_the_same_worker(deployment: Deployment) -> None:
    send_all(deployment, list(some_events(500, 50)))
    process = subprocess.Popen(
        [sys.executable, "-m", "faust", "-A", "streams.app", "worker", "-l", "warn"],
        cwd=ROOT,
        env={**os.environ, **environment(deployment.settings)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deployment.settle()
        found = deployment.audit()
        assert found.clean, found
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_without_a_broker_a_worker_still_stops_and_says_why(tmp_path: Path) -> None:
    with Stack.started(tmp_path / "stack") as alone:
        settings = deployment_settings(alone.bootstrap, alone.redis_url, "stop.")
        with Deployment(settings, tmp_path) as deployment:
            send_all(deployment, list(some_events(500, 50)))
            worker = deployment.start()
            deployment.settle()
            assert alone.kafka is not None
            alone.kafka.kill()
            time.sleep(2)  # one that is stopped before it has missed the broker ends cleanly
            assert worker.stop(60) == 1
            assert "is the broker up?" in worker.log.read_text().splitlines()[-1]
