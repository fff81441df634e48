"""`livevalue recover` on real Kafka and Valkey: a lost log, a lost store, and on from there."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, TopicPartition  # type: ignore[import-untyped]

from livevalue.embedded import Stack
from livevalue.jobs.recovering import Action
from livevalue.jobs.recovering import recover as job
from livevalue.jobs.storing import archive_log
from livevalue.output import Refused
from streams import topics
from tests.e2e.deployment import (
    Deployment,
    WorkerProcess,
    deployment_settings,
    send_all,
    some_events,
)

_databases = count(0)


@pytest.fixture
def deployment(stack: Stack, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    url = stack.redis_url.rsplit("/", 1)[0] + f"/{13 + next(_databases) % 2}"
    settings = deployment_settings(stack.bootstrap, url, topic_prefix)
    with Deployment(settings, tmp_path) as made:
        yield made


def recover(deployment: Deployment, action: Action, **options: Any) -> list[dict[str, Any]]:
    """The plan of `livevalue recover`."""
    options = {"dry_run": False, **options}
    plan: list[dict[str, Any]] = asyncio.run(job(deployment.settings, action, **options))["plan"]
    return plan


def livevalue(
    deployment: Deployment, *words: str, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """A command as a process, which must end with `code`."""
    done = deployment.command(*words)
    assert done.returncode == code, done.stderr
    return done


def halts(worker: WorkerProcess) -> str:
    """What a worker says that halts every partition, and therefore ends."""
    assert worker.wait(60) == 1
    halted = worker.lines("partition halted")
    assert halted
    return str(halted[0]["error"])


def values(deployment: Deployment) -> dict[str, Any]:
    """What each user's document says, but for what names the commit and the event that wrote it."""
    found = {}
    for p in range(deployment.settings.kafka.partitions):
        head = f"lv:{{{p}}}:v:"
        for key in deployment.redis.scan_iter(f"{head}*", count=1000):
            document = json.loads(deployment.redis.get(key) or b"")
            found[key.decode().removeprefix(head)] = {
                name: document[name] for name in ("as_of", "values", "history", "silence")
            }
    return found


def spent_cents(events: Sequence[tuple[int, dict[str, Any]]]) -> dict[str, int]:
    spent: dict[str, int] = {}
    for source, event in events:
        cents = round(float(event["amount"]) * 100) if source == 1 else 0
        spent[event["user_id"]] = spent.get(event["user_id"], 0) + cents
    return spent


def last_scores(deployment: Deployment) -> dict[str, Any]:
    records = deployment.read(deployment.settings.kafka.scores)
    return {r.key.decode(): r.value for r in records}


def revisions(records: Sequence[Any]) -> list[tuple[bytes, int]]:
    return [(r.key, json.loads(r.value)["revision"]) for r in records if r.value is not None]


def make_again(deployment: Deployment, topic: str) -> None:
    admin = KafkaAdminClient(**topics.connection(deployment.settings.kafka))
    admin.delete_topics([topic])
    admin.close()
    until = time.monotonic() + 30
    while topics.check(deployment.settings):
        assert time.monotonic() < until
        topics.apply(deployment.settings)
        time.sleep(0.1)


def test_a_topic_made_again_halts_the_worker_until_it_is_adopted(deployment: Deployment) -> None:
    events = list(some_events(1500, 60))
    send_all(deployment, events[:1000])
    worker = deployment.start()
    deployment.settle()
    assert worker.stop() == 0
    before, kept = values(deployment), deployment.positions()
    make_again(deployment, deployment.sources[1])

    said = halts(deployment.start("halted"))
    assert "made again" in said
    assert "livevalue recover adopt --dry-run" in said
    marks = deployment.watermarks()
    plan = json.loads(livevalue(deployment, "recover", "adopt", "--dry-run", "--json", "-").stdout)
    plan = plan["plan"]
    assert deployment.watermarks() == marks
    assert [row["to"] for row in plan] == [[kept[p, 0], 0, kept[p, 2]] for p in range(2)]
    assert recover(deployment, "adopt") == plan
    assert values(deployment) == before

    # The same purchases in the new topic are known by their ids; new ones count.
    send_all(deployment, [e for e in events[:1000] if e[0] == 1])
    send_all(deployment, events[1000:])
    deployment.start("after")
    deployment.settle()
    time.sleep(1.0)  # a sweep publishes every user once
    deployment.settle()
    after = values(deployment)
    assert {u: round(d["history"]["spent"] * 100) for u, d in after.items()} == spent_cents(events)
    records = deployment.read(deployment.settings.kafka.scores)
    assert len(revisions(records)) == len(set(revisions(records)))
    held = {u: json.loads(d)["history"] for u, d in last_scores(deployment).items()}
    assert held == {u: d["history"] for u, d in after.items()}
    # Nothing is left to adopt.
    assert not any(row["changes"] for row in recover(deployment, "adopt", dry_run=True))


def test_a_lost_store_halts_the_worker_and_after_a_wipe_the_values_are_the_same(
    deployment: Deployment,
) -> None:
    send_all(deployment, list(some_events(1500, 60)))
    worker = deployment.start()
    deployment.settle()
    assert worker.stop() == 0
    before = values(deployment)
    published = len(deployment.read(deployment.settings.kafka.scores))
    deployment.redis.flushdb()

    said = livevalue(deployment, "run", code=1).stderr.splitlines()
    (line,) = [text for text in said if not text.startswith("{")]  # the rest is the log
    assert line.startswith("livevalue: the store holds nothing of partition")
    assert "`livevalue recover rebuild --dry-run`" in line
    assert all(row["to"] == [0, 0, 0] for row in recover(deployment, "wipe"))
    send_all(deployment, list(some_events(20, 60, seed=3, first=5000)))
    deployment.start("after")
    deployment.settle()
    found = deployment.audit()
    assert found.clean, found
    assert found.events == 1520
    # In silence up to where publishing had come: once each user, then what is new.
    again = revisions(deployment.read(deployment.settings.kafka.scores))
    assert len(again) == len(set(again))
    assert len(again) - published <= len(before) + 20
    touched = {e["user_id"] for _, e in some_events(20, 60, seed=3, first=5000)}
    after = values(deployment)
    assert {u: after[u] for u in before.keys() - touched} == {
        u: before[u] for u in before.keys() - touched
    }


def test_a_lost_store_is_rebuilt_from_archive_and_log(
    deployment: Deployment, tmp_path: Path
) -> None:
    events = list(some_events(2000, 60))
    send_all(deployment, events[:1500])
    worker = deployment.start()
    deployment.settle()
    assert worker.stop() == 0
    before = values(deployment)
    archive = tmp_path / "archive"
    asyncio.run(archive_log(deployment.settings, archive))
    # Retention takes what is archived, and Redis is lost.
    admin = KafkaAdminClient(**topics.connection(deployment.settings.kafka))
    ends = deployment.ends()
    admin.delete_records(
        {
            TopicPartition(t, p): ends[p, s]
            for p in range(2)
            for s, t in enumerate(deployment.sources)
        }
    )
    admin.close()
    send_all(deployment, events[1500:1700])
    deployment.redis.flushdb()
    with pytest.raises(Refused, match="name the archive that holds it"):
        recover(deployment, "rebuild", dry_run=True)
    plan = recover(deployment, "rebuild", archive=archive)
    assert [row["store"] for row in plan] == ["main", "main"]
    send_all(deployment, events[1700:])
    deployment.start("after")
    deployment.settle()
    time.sleep(1.0)
    deployment.settle()
    after = values(deployment)
    assert {u: round(d["history"]["spent"] * 100) for u, d in after.items()} == spent_cents(events)
    assert before.keys() <= after.keys()
    records = revisions(deployment.read(deployment.settings.kafka.scores))
    assert len(records) == len(set(records))
    held = {u: json.loads(d)["history"] for u, d in last_scores(deployment).items()}
    assert held == {u: d["history"] for u, d in after.items()}
