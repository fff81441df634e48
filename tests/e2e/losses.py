"""Lost logs and stores in tests: how to lose them, what a worker says then, and what is left."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from kafka import KafkaAdminClient, TopicPartition  # type: ignore[import-untyped]

from livevalue.jobs.recovering import Action
from livevalue.jobs.recovering import recover as job
from streams import broker, topics
from tests.e2e.deployment import Deployment, WorkerProcess

DETECTED_S = 10.0  # what docs/operations.md promises


def admin(deployment: Deployment) -> KafkaAdminClient:
    return KafkaAdminClient(**broker.connection(deployment.settings.kafka))


def make_again(deployment: Deployment, *names: str) -> None:
    """Delete topics and make them anew, empty."""
    asked = admin(deployment)
    asked.delete_topics(list(names))
    asked.close()
    until = time.monotonic() + 30
    while topics.check(deployment.settings):
        assert time.monotonic() < until
        topics.apply(deployment.settings)
        time.sleep(0.1)


def delete_before(deployment: Deployment, to: Mapping[tuple[int, int], int]) -> None:
    """What retention does: the log of (partition, source) begins at an offset."""
    asked = admin(deployment)
    asked.delete_records({TopicPartition(deployment.sources[s], p): n for (p, s), n in to.items()})
    asked.close()


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


def plain_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a command says beside its log."""
    return [line for line in done.stderr.splitlines() if not line.startswith("{")]


def json_lines(done: subprocess.CompletedProcess[str], what: str) -> list[dict[str, Any]]:
    """The lines of a command's log that say `what`."""
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    return [line for line in lines if line["what"] == what]


def digest(deployment: Deployment) -> dict[str, Any]:
    """What `livevalue digest` says of the store."""
    found: dict[str, Any] = json.loads(livevalue(deployment, "digest", "--json", "-").stdout)
    return found


def until(what: Callable[[], Any], patience_s: float) -> float:
    """Wait until it is so; -> the seconds that it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < patience_s, f"not so after {patience_s} s"
        time.sleep(0.05)
    return time.monotonic() - began


def halted(worker: WorkerProcess) -> dict[int, str]:
    """What a worker says of each partition that it has halted."""
    lines = worker.lines("partition halted") if worker.log.exists() else []
    return {said["partition"]: said["error"] for said in lines}


def began(worker: WorkerProcess) -> datetime:
    """When a worker wrote its first line: what it finds as it starts counts from there."""
    return datetime.fromisoformat(worker.lines()[0]["at"])


def noticed(lines: Sequence[Mapping[str, Any]], since: datetime) -> float:
    """Seconds from a moment to the last of these lines by the log's own clock: at most DETECTED_S.

    What the machine does to our own waiting does not count.
    """
    took = max((datetime.fromisoformat(line["at"]) - since).total_seconds() for line in lines)
    assert took < DETECTED_S, took
    return took


def ended(worker: WorkerProcess, patience_s: float = 30.0) -> str:
    """The last line of a worker that must give up; `noticed` says how soon it did."""
    assert worker.wait(patience_s) == 1
    return worker.log.read_text().splitlines()[-1]


def ask(worker: WorkerProcess, path: str) -> tuple[int, str]:
    """Status and body of what a worker serves."""
    url = worker.lines("serving metrics")[-1]["url"].removesuffix("/metrics")
    try:
        with urllib.request.urlopen(url + path, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


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


def held_cents(deployment: Deployment) -> dict[str, int]:
    """What each user has spent, by their document."""
    return {u: round(d["history"]["spent"] * 100) for u, d in values(deployment).items()}


def spent_cents(events: Sequence[tuple[int, dict[str, Any]]]) -> dict[str, int]:
    """What each user has spent, by the events."""
    spent: dict[str, int] = {}
    for source, event in events:
        cents = round(float(event["amount"]) * 100) if source == 1 else 0
        spent[event["user_id"]] = spent.get(event["user_id"], 0) + cents
    return spent


def last_scores(deployment: Deployment) -> dict[str, Any]:
    """The last document of each user on `scores`; None for one who was erased."""
    records = deployment.read(deployment.settings.kafka.scores)
    return {r.key.decode(): r.value for r in records}


def revisions(records: Sequence[Any]) -> list[tuple[bytes, int]]:
    """(user, revision) of each document."""
    return [(r.key, json.loads(r.value)["revision"]) for r in records if r.value is not None]


def said_once_and_last(deployment: Deployment) -> None:
    """No (user, revision) twice on `scores`, and each user's last document is that of Redis."""
    again = revisions(deployment.read(deployment.settings.kafka.scores))
    assert len(again) == len(set(again))
    held = {u: json.loads(d)["history"] for u, d in last_scores(deployment).items() if d}
    assert held == {u: d["history"] for u, d in values(deployment).items()}
