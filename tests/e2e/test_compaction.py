"""Inputs that Kafka compacts while a worker reads them, and while none does."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.auditor import Unauditable
from livevalue.embedded import Stack
from streams import compaction
from tests.compacting import SEGMENT_S, compact, compacted
from tests.e2e.deployment import (
    Deployment,
    WorkerProcess,
    deployment_settings,
    send_all,
    some_events,
)
from tests.e2e.losses import (
    admin,
    digest,
    ended,
    halted,
    held_cents,
    livevalue,
    noticed,
    plain_lines,
    recover,
    said_once_and_last,
    spent_cents,
    until,
)

_DATABASE = 14
_TYPES = ("browse", "purchase", "interaction")
_Event = tuple[int, dict[str, Any]]


@pytest.fixture
def deployment(stack: Stack, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    url = stack.redis_url.rsplit("/", 1)[0] + f"/{_DATABASE}"
    # Two workers die, and each is waited for by its group.
    kafka = {"compacted": "accept", "session_timeout_s": 3.0, "heartbeat_s": 0.75}
    settings = deployment_settings(stack.bootstrap, url, topic_prefix, partitions=1, kafka=kafka)
    with Deployment(settings, tmp_path) as made:
        asked = admin(made)
        compact(asked, made.sources)
        asked.close()
        yield made


def test_a_topic_made_compacted_under_a_worker_that_refuses_ends_it_and_names_the_setting(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    url = stack.redis_url.rsplit("/", 1)[0] + f"/{_DATABASE}"
    settings = deployment_settings(stack.bootstrap, url, topic_prefix, partitions=1)
    with Deployment(settings, tmp_path) as refusing:
        worker = refusing.start()
        send_all(refusing, list(some_events(20, 3)))
        refusing.settle()
        asked = admin(refusing)
        since = datetime.now(UTC)
        compact(asked, refusing.sources[1:2])
        asked.close()
        said = ended(worker)
        noticed(worker.lines("giving up"), since)
        assert said == f"livevalue: {compaction.refusal(refusing.sources[1])}"
        assert said in plain_lines(livevalue(refusing, "run", code=1))


class Told:
    """All that was sent, in order, and what may be compacted of it."""

    def __init__(self, deployment: Deployment) -> None:
        self.all: list[_Event] = []
        self._deployment = deployment
        self._closed = 0

    def send(self, events: list[_Event]) -> None:
        self.all += events
        send_all(self._deployment, events)

    def close_segments(self) -> None:
        """What was sent before may be compacted after this: of users who come once only."""
        for _ in range(2):
            time.sleep(1.5 * SEGMENT_S)
            self._closed += 1
            last = max(event["event_time"] for _, event in self.all)
            self.send(
                [
                    (s, _event(s, f"closer{self._closed}", f"c{self._closed}.{s}", last + 1))
                    for s in range(3)
                ]
            )


def _event(source: int, user: str, name: str, at_ms: int) -> dict[str, Any]:
    event: dict[str, Any] = {"event_id": name, "user_id": user, "event_time": at_ms}
    return event | ({}, {"amount": "3.00"}, {"action": "like"})[source]


def offsets(deployment: Deployment, source: int) -> dict[int, str]:
    """User of each record that the log still holds."""
    return {r.offset: r.key.decode() for r in deployment.read(deployment.sources[source])}


def folded_last(deployment: Deployment) -> list[tuple[int, str]]:
    """Of each source the offset of the record before the watermark, and its user."""
    at = deployment.positions()
    held = [offsets(deployment, s) for s in range(3)]
    return [max((n, held[s][n]) for n in held[s] if n < at[0, s]) for s in range(3)]


def gone(deployment: Deployment, at: list[int]) -> None:
    """Wait until no source holds its record of these any more."""
    compacted(lambda: all(n not in offsets(deployment, s) for s, n in enumerate(at)))


def claimed(worker: WorkerProcess) -> None:
    """It has taken its partition on, and did not halt."""
    until(lambda: halted(worker) or worker.lines("partition claimed"), 30)
    assert not halted(worker)


def test_a_compacted_input_that_is_accepted_loses_nothing_that_was_folded_and_never_halts(
    deployment: Deployment, tmp_path: Path
) -> None:
    told = Told(deployment)
    worker = deployment.start("w0")
    for life in (1, 2):
        told.send(list(some_events(400, 12, seed=life, first=1000 * life)))
        deployment.settle()
        told.close_segments()
        deployment.settle()
        compacted(lambda: sum(len(offsets(deployment, s)) for s in range(3)) < 120)
        worker.kill()

        # The record before the watermark goes, too, while no worker runs.
        before = folded_last(deployment)
        last = max(event["event_time"] for _, event in told.all)
        told.send(
            [(s, _event(s, user, f"m{life}.{s}", last + 1)) for s, (_, user) in enumerate(before)]
        )
        told.close_segments()
        gone(deployment, [offset for offset, _ in before])

        worker = deployment.start(f"w{life}")
        claimed(worker)
        deployment.settle()
    assert worker.exit_code is None and not worker.lines("partition forgotten")
    (line,) = worker.lines("compacted input")
    assert line["warning"] == compaction.warning(deployment.sources)

    # Every user is what was sent of them, all of it.
    assert held_cents(deployment) == spent_cents(told.all)
    rows = [json.dumps({"type": _TYPES[s], **event}) for s, event in told.all]
    (tmp_path / "all.jsonl").write_text("\n".join(rows) + "\n")
    replayed = json.loads(livevalue(deployment, "replay", "all.jsonl", "--json", "-").stdout)
    live = digest(deployment)
    assert (live["digest"], live["applied"]) == (replayed["digest"], len(told.all))
    assert replayed["warnings"] == []
    said_once_and_last(deployment)

    # Nobody takes what the log lost for a fault of Redis, and everybody says it.
    said = [compaction.warning(deployment.sources)]
    done = livevalue(deployment, "verify", "--json", "-")
    found = json.loads(done.stdout)
    assert (found["different"], found["warnings"]) == (0, said)
    # The twelve, and those who came last before each of the two kills.
    assert (found["users"], found["excepted"]["compacted"]) == (12 + 8, 12 + 2)
    assert f"! {said[0]}" in plain_lines(done)
    again = livevalue(deployment, "replay", "kafka", "--json", "-")
    assert json.loads(again.stdout)["warnings"] == said
    assert json.loads(again.stdout)["applied"] == sum(len(offsets(deployment, s)) for s in range(3))
    assert f"! {said[0]}" in plain_lines(again)
    (row,) = recover(deployment, "adopt", dry_run=True)
    assert not row["changes"] and "nothing to do" in row["notes"][0]
    dry = livevalue(deployment, "recover", "rebuild", "--dry-run")
    assert f"! {said[0]}" in dry.stdout.splitlines()
    assert said[0] in livevalue(deployment, "doctor").stdout
    assert f"! {said[0]}" in livevalue(deployment, "topics", "--plan").stdout.splitlines()
    with pytest.raises(Unauditable, match="what was compacted away"):
        deployment.audit()
    assert worker.stop() == 0

    # What compaction cannot have done is a difference still.
    document = json.loads(deployment.redis.get("lv:{0}:v:u3") or b"")
    document["values"]["d30"]["expected"] += 9
    deployment.redis.set("lv:{0}:v:u3", json.dumps(document))
    deployment.redis.delete("lv:main:{0}:s:u4")
    found = json.loads(livevalue(deployment, "verify", "--json", "-", code=1).stdout)
    assert {d["user_id"]: d["differs"] for d in found["first_differences"]} == {
        "u3": [".values.d30.expected"],
        "u4": ["only in the log"],
    }

    # A worker that begins anew reads over the holes, from the head of the log on.
    recover(deployment, "wipe")
    worker = deployment.start("anew")
    deployment.settle()
    left: dict[str, int] = {}
    for s in range(3):
        for r in deployment.read(deployment.sources[s]):
            cents = round(float(json.loads(r.value).get("amount", 0)) * 100)
            left[r.key.decode()] = left.get(r.key.decode(), 0) + cents
    assert held_cents(deployment) == left
    assert not halted(worker)
