"""`dlq` and `erase` on the real stack: what was not counted, counted after all; users forgotten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from featurestore.partitioner import partition
from livevalue.embedded import Stack
from tests.e2e.deployment import START_MS, Deployment, deployment_settings
from tests.parity.onstack import command, live, replayed, verified


def purchase(name: str, user: str, **more: Any) -> bytes:
    event = {"event_id": name, "user_id": user, "event_time": START_MS, "amount": "2.50"}
    return json.dumps(event | more).encode()


@pytest.fixture
def settled(stack: Stack, topic_prefix: str, tmp_path: Path) -> Any:
    """A worker over some events, three of which are dead letters."""
    url = stack.redis_url.rsplit("/", 1)[0] + "/12"
    settings = deployment_settings(stack.bootstrap, url, topic_prefix, partitions=2)
    with Deployment(settings, tmp_path) as deployment:
        deployment.start()
        for n in range(5):
            deployment.send_raw(1, b"ada", purchase(f"a{n}", "ada"))
            deployment.send_raw(1, b"bob", purchase(f"b{n}", "bob"))
        wrong = 1 - partition("ada", 2, settings.kafka.partitioner)
        deployment.producer.send(
            deployment.sources[1], key=b"ada", value=purchase("astray", "ada"), partition=wrong
        )
        deployment.send_raw(1, b"ada", b"{broken")
        deployment.send_raw(1, b"bob", purchase("yen", "bob", currency="JPY"))
        deployment.flush()
        deployment.settle()
        yield deployment


def orders(deployment: Deployment, user: str) -> int | None:
    p = partition(user, 2, deployment.settings.kafka.partitioner)
    held: Any = deployment.redis.get(f"lv:{{{p}}}:v:{user}")
    return None if held is None else int(json.loads(held)["history"]["orders"])


def test_letters_are_listed_shown_and_sent_again_once(settled: Deployment) -> None:
    found = command(settled, "dlq", "ls")
    assert found["counts"] == {"misrouted": 1, "not_json": 1, "unknown_currency": 1}
    only = command(settled, "dlq", "ls", "--reason", "not_json")["records"]
    assert [letter["reason"] for letter in only] == ["not_json"]
    (shown,) = command(settled, "dlq", "show", only[0]["at"])["records"]
    assert bytes.fromhex(shown["value_hex"]) == b"{broken"
    assert (shown["key"], shown["topic"]) == ("ada", settled.sources[1])
    missing = command(settled, "dlq", "show", "0:999999", code=1)
    assert "`livevalue dlq ls` shows them" in missing["said"]

    assert orders(settled, "ada") == 5
    for _ in range(2):  # the second is a repeat of an event that was counted
        done = command(settled, "dlq", "replay", "--reason", "misrouted")
        assert (done["sent"], done["skipped"]) == (1, 0)
        settled.settle()
        assert orders(settled, "ada") == 6
    # What is wrong still is a dead letter again, and nothing else.
    assert command(settled, "dlq", "replay", "--reason", "unknown_currency")["sent"] == 1
    settled.settle()
    assert command(settled, "dlq", "ls")["counts"]["unknown_currency"] == 2
    assert orders(settled, "bob") == 5
    assert verified(settled.settings)["different"] == 0


def test_a_record_is_sent_again_with_its_own_headers_and_an_erasure_with_its_own_time(
    settled: Deployment,
) -> None:
    """Headers that look like ours are the record's own where they stand before ours."""
    topic = settled.sources[1]
    wrong = 1 - partition("ada", 2, settled.settings.kafka.partitioner)
    own = [("mine", b"1"), ("__connect.errors.topic", b"elsewhere"), ("mine", b"2")]
    settled.producer.send(
        topic, key=b"ada", value=purchase("lied", "ada"), partition=wrong, headers=own
    )
    settled.producer.send(topic, key=b"ada", value=None, partition=wrong, timestamp_ms=START_MS)
    settled.flush()
    settled.settle()
    assert command(settled, "dlq", "replay", "--reason", "misrouted")["sent"] == 3
    again = [r for r in settled.read(topic) if "livevalue.replay.of" in dict(r.headers)]
    (lied,) = [r for r in again if r.value and b"lied" in r.value]
    assert list(lied.headers[:-1]) == own
    (erased,) = [r for r in again if r.value is None]
    assert (erased.key, erased.timestamp) == (b"ada", START_MS)


def test_an_erased_user_is_forgotten_everywhere_and_counts_anew(settled: Deployment) -> None:
    before = live(settled.settings)
    done = command(settled, "erase", "ada")
    assert done["done"] is True
    assert done["topics"] == list(settled.sources)
    erases = [r for topic in settled.sources for r in settled.read(topic) if r.value is None]
    assert [(r.key, r.timestamp) for r in erases] == [(b"ada", done["timestamp"])] * 3
    settled.settle()
    assert orders(settled, "ada") is None
    scores = settled.read(settled.settings.kafka.scores)
    assert [r.value for r in scores if r.key == b"ada"][-1] is None
    now = live(settled.settings)
    assert (before["users"], now["users"]) == (2, 1)
    assert now["applied"] == 5
    assert replayed(settled.settings, "kafka")["digest"] == now["digest"]
    assert verified(settled.settings)["different"] == 0

    settled.send_raw(1, b"ada", purchase("again", "ada"))
    settled.flush()
    settled.settle()
    assert orders(settled, "ada") == 1
    now = live(settled.settings)
    assert replayed(settled.settings, "kafka")["digest"] == now["digest"]
    assert verified(settled.settings)["different"] == 0
