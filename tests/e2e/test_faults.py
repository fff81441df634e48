"""Nothing is lost, doubled or unsaid, whatever is killed meanwhile; the auditor sees what is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos import load
from benchmarks.chaos.auditor import Audit, read
from benchmarks.chaos.runner import SHORT, Scenario, chaos_settings, run
from featurestore.columns import NO_TIME
from featurestore.state import States
from livevalue.embedded import Stack
from streams.row import join, split
from streams.settings import Settings
from tests.e2e.deployment import Deployment

_DATABASE = 14  # other tests take 1 to 13


@pytest.mark.timeout(400)
def test_20000_events_survive_six_kills_two_restarts_a_roll_back_and_a_broker_kill(
    tmp_path: Path,
) -> None:
    told: list[str] = []
    result = run(Scenario(seed=1), tmp_path, told.append)
    found = result.audit
    assert result.clean, (found, result.different, told)
    assert found.records >= 20_000 and found.users == 500
    assert result.done == SHORT == {"kill": 6, "redis": 2, "rollback": 1, "broker": 1}
    assert result.undone[0] >= 1_000
    # The load held what the audit is about.
    assert result.sent["aborted"] and result.sent["late"] and found.letters > 300
    assert list(result.line())[:6] == [
        *("events", "kills", "lost", "applied_twice", "outputs_missing", "outputs_twice")
    ]


@pytest.fixture(scope="module")
def settled(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment that has folded 1,500 messages of the load, its worker gone."""
    url = stack.redis_url.rsplit("/", 1)[0] + f"/{_DATABASE}"
    settings = _own_topics(chaos_settings(stack.bootstrap, url, Scenario(partitions=2)))
    with Deployment(settings, tmp_path_factory.mktemp("audited")) as deployment:
        worker = deployment.start()
        for until in (500, 1_000, 1_500):  # so that users are published more than once
            feeder = load.Feeder(settings.kafka, 60, until, 1e6, lambda sent: sent >= 500)
            feeder.start()
            feeder.join(60)
            deployment.settle()
        assert worker.stop() == 0
        yield deployment


def _own_topics(settings: Settings) -> Settings:
    names = ("app", "browse", "purchase", "interaction", "scores", "dlq")
    update = {name: f"audited.{getattr(settings.kafka, name)}" for name in names}
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update=update)})


def test_the_auditor_finds_nothing_where_nothing_is_wrong(settled: Deployment) -> None:
    found = settled.audit()
    assert found.clean, found
    assert found.records > found.events > 1_000 and found.users == 60 and found.letters > 20


def test_the_auditor_counts_an_event_dropped_from_a_state(settled: Deployment) -> None:
    key, row = _a_state(settled)
    state, score = split(row)
    states = States.decode(["x"], [state])
    assert states.head["counts"][0, 0] > 0
    states.head["counts"][0, 0] -= 1
    _doctored(settled, key, join(states.encode()[0], score), row, {"lost": 1})


def test_the_auditor_counts_an_event_that_a_state_holds_twice(settled: Deployment) -> None:
    key, row = _a_state(settled)
    state, score = split(row)
    states = States.decode(["x"], [state])
    states.head["counts"][0, 1] += 1
    _doctored(settled, key, join(states.encode()[0], score), row, {"applied_twice": 1})


def test_the_auditor_sees_an_order_that_the_log_does_not_have(settled: Deployment) -> None:
    key, row = _a_state(settled)
    state, score = split(row)
    states = States.decode(["x"], [state])
    assert states.head["last_ms"][0] != NO_TIME
    states.head["event_gap_ms"] += 1
    _doctored(settled, key, join(states.encode()[0], score), row, {"users_wrong": 1})


def test_the_auditor_counts_a_document_that_is_not_the_last_one_sent(settled: Deployment) -> None:
    key = next(iter(settled.redis.scan_iter("lv:{0}:v:*")))
    row: Any = settled.redis.get(key)
    _doctored(settled, key, row.replace(b'"v":1', b'"v":2'), row, {"outputs_missing": 1})


def test_the_auditor_counts_an_output_sent_twice_a_hole_and_letters_amiss(
    settled: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = settled.settings.kafka
    scores, letters = settled.read(kafka.scores), settled.read(kafka.dlq)
    revisions = Counter(r.key for r in scores)
    often = next(key for key, n in revisions.items() if n > 2)
    own = [r for r in scores if r.key == often]

    def found(which: str, records: list[Any]) -> Audit:
        def doctored(kafka: Any, topic: str) -> list[Any]:
            return records if topic == which else read(kafka, topic)

        with monkeypatch.context() as patched:
            patched.setattr("benchmarks.chaos.auditor.read", doctored)
            return settled.audit()

    one = found(kafka.scores, [*scores, own[-1]])
    assert _wrong(one) == {"outputs_twice": 1}
    # The one before the last is named as `previous` by the last.
    assert (
        json.loads(own[-1].value)["previous"]["revision"] == json.loads(own[-2].value)["revision"]
    )
    one = found(kafka.scores, [r for r in scores if r is not own[-2]])
    assert _wrong(one) == {"outputs_missing": 1} and one.examples[0][0] == "hole"
    assert _wrong(found(kafka.dlq, letters[1:])) == {"letters_missing": 1}
    assert _wrong(found(kafka.dlq, [*letters, letters[0]])) == {"letters_twice": 1}
    other = letters[0]._replace(value=b"other bytes")
    assert _wrong(found(kafka.dlq, [other, *letters[1:]])) == {"letters_wrong": 1}


def _a_state(settled: Deployment) -> tuple[bytes, bytes]:
    """A user's key and row, of a user with a tail: its head is stored by itself."""
    for key in settled.redis.scan_iter("lv:main:{0}:s:*"):
        row: Any = settled.redis.get(key)
        if States.decode(["x"], [split(row)[0]]).has_tail()[0]:
            return key, row
    raise AssertionError("nobody has a tail")


def _doctored(
    settled: Deployment, key: bytes, wrong: bytes, right: bytes, wanted: dict[str, int]
) -> None:
    settled.redis.set(key, wrong)
    try:
        assert _wrong(settled.audit()) == wanted
    finally:
        settled.redis.set(key, right)


def _wrong(found: Audit) -> dict[str, int]:
    return {name: count for name, count in found.faults().items() if count}
