"""`livevalue recover` on real Kafka and Valkey: a lost log, a lost store, and on from there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.errors import ProducerFenced  # type: ignore[import-untyped]

from featurestore.errors import StoreMismatch
from featurestore.partitioner import partition
from featurestore.store import Identity, Watermark
from livevalue.embedded import Stack
from livevalue.jobs.recovering import recover as job
from livevalue.jobs.recovery_plans import Found, adopt, serve, wipe
from livevalue.jobs.storing import archive_log
from livevalue.output import Refused
from streams import sweep, topics
from streams.emit import Published
from streams.gap import Bounds
from streams.settings import KafkaSettings, Settings
from tests.e2e.deployment import (
    START_MS,
    Deployment,
    deployment_settings,
    send_all,
    some_events,
)
from tests.e2e.losses import (
    began,
    delete_before,
    digest,
    ended,
    halted,
    held_cents,
    json_lines,
    last_scores,
    livevalue,
    make_again,
    noticed,
    plain_lines,
    recover,
    revisions,
    said_once_and_last,
    spent_cents,
    until,
    values,
)

_databases = count(0)


@pytest.fixture
def deployment(stack: Stack, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    url = stack.redis_url.rsplit("/", 1)[0] + f"/{13 + next(_databases) % 2}"
    settings = deployment_settings(stack.bootstrap, url, topic_prefix)
    with Deployment(settings, tmp_path) as made:
        yield made


def test_a_topic_made_again_under_a_worker_and_grown_longer_halts_it_until_it_is_adopted(
    deployment: Deployment,
) -> None:
    events = list(some_events(1500, 60))
    send_all(deployment, events[:1000])
    worker = deployment.start()
    deployment.settle()
    kept = deployment.positions()
    make_again(deployment, deployment.sources[1])
    made = datetime.now(UTC)
    # Where the worker reads on in it, there are records too: the same ones, and others.
    send_all(deployment, [e for e in events if e[0] == 1])
    send_all(deployment, [e for e in events[1000:] if e[0] == 0])
    said = ended(worker)
    assert f"{deployment.sources[1]} is not the topic" in said and "made again" in said
    assert "livevalue recover adopt --dry-run" in said
    assert sorted(halted(worker)) == [0, 1]
    noticed(worker.lines("partition halted"), made)
    assert all(deployment.ends()[p, 1] > kept[p, 1] for p in range(2))

    marks, before, at = deployment.watermarks(), values(deployment), deployment.positions()
    worker = deployment.start("halted")
    assert "made again" in ended(worker)
    noticed(worker.lines("partition halted"), began(worker))
    plan = json.loads(livevalue(deployment, "recover", "adopt", "--dry-run", "--json", "-").stdout)
    plan = plan["plan"]
    # Neither has touched the store, nor fenced who works there.
    assert deployment.watermarks() == marks
    assert [row["to"] for row in plan] == [[at[p, 0], 0, at[p, 2]] for p in range(2)]
    assert recover(deployment, "adopt") == plan
    assert values(deployment) == before

    # The same purchases in the new topic are known by their ids; new ones count.
    send_all(deployment, [e for e in events[1000:] if e[0] == 2])
    deployment.start("after")
    deployment.settle()
    time.sleep(1.0)  # a sweep publishes every user once
    deployment.settle()
    assert held_cents(deployment) == spent_cents(events)
    said_once_and_last(deployment)
    # Nothing is left to adopt.
    assert not any(row["changes"] for row in recover(deployment, "adopt", dry_run=True))


def test_a_store_lost_under_a_worker_halts_what_had_published_until_it_is_wiped(
    deployment: Deployment,
) -> None:
    events = list(some_events(1500, 60))
    kafka = deployment.settings.kafka
    here, there = (
        [e for e in events if partition(e[1]["user_id"], 2, kafka.partitioner) == p]
        for p in range(2)
    )
    send_all(deployment, here)
    worker = deployment.start()
    deployment.settle()
    before = values(deployment)
    lost = datetime.now(UTC)
    deployment.redis.flushall()
    until(lambda: halted(worker), 30)
    noticed(worker.lines("partition halted"), lost)
    # The other one had nothing to lose, and is served.
    send_all(deployment, there)
    ends = {at: end for at, end in deployment.ends().items() if at[0] == 1}
    until(lambda: deployment.positions() == ends and _all_said(deployment), 30)
    assert halted(worker).keys() == {0} and worker.exit_code is None
    before |= values(deployment)
    said = len(deployment.read(kafka.scores))
    lost = datetime.now(UTC)
    deployment.redis.flushall()
    assert "`livevalue recover rebuild --dry-run`" in ended(worker)
    noticed([line for line in worker.lines("partition halted") if line["partition"] == 1], lost)
    for p, error in halted(worker).items():
        assert error.startswith(f"the store holds nothing of partition {p}, yet ")

    asked = datetime.now(UTC)
    done = livevalue(deployment, "run", code=1)
    (line,) = plain_lines(done)
    noticed(json_lines(done, "partition halted"), asked)
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
    assert len(again) - said <= len(before) + 20
    touched = {e["user_id"] for _, e in some_events(20, 60, seed=3, first=5000)}
    after = values(deployment)
    assert {u: after[u] for u in before.keys() - touched} == {
        u: before[u] for u in before.keys() - touched
    }


def _all_said(deployment: Deployment) -> bool:
    """Whether everything that the store holds is published."""
    marks = deployment.watermarks().values()
    return all(m.get("published") == f"{m['seq']}:{m['writer']}" for m in marks)


async def test_what_an_old_worker_has_open_is_never_published_once_recover_has_looked(
    deployment: Deployment,
) -> None:
    kafka = deployment.settings.kafka
    old = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=f"{kafka.app}-0")
    await old.start()
    try:
        await old.begin_transaction()
        said = Published(Identity(9, "old"), (0, 0, 0), "log")
        await old.send_and_wait(kafka.published, said.encode(), b"0", partition=0)
        # Not committed, so that the look does not see it: nothing was ever published.
        done = await job(deployment.settings, "wipe", dry_run=False)
        assert [row["changes"] for row in done["plan"]] == [False, False]
        with pytest.raises(ProducerFenced):
            await old.commit_transaction()
    finally:
        await old.stop()
    assert deployment.read(kafka.published) == []


def test_a_log_that_is_cut_again_before_a_worker_follows_it_is_told_from_the_one_adopted(
    deployment: Deployment,
) -> None:
    send_all(deployment, list(some_events(300, 20)))
    worker = deployment.start()
    deployment.settle()
    assert worker.stop() == 0
    # As if the log had been cut: the store believes that there was more of one topic.
    row = "lv:main:{0}:wm"
    ends = [deployment.ends()[0, s] for s in range(3)]
    deployment.redis.hset(row, "positions", f"{ends[0]},{ends[1] + 9},{ends[2]}")
    assert [r["changes"] for r in recover(deployment, "adopt")] == [True, False]
    mark = deployment.watermarks()[0]
    assert mark["positions"] == ",".join(map(str, ends))
    before = [r for r in deployment.read(deployment.sources[1]) if r.partition == 0][-1]
    assert json.loads(mark["marks"])[1].startswith(f"{before.offset}:")
    # Cut again and written on, while nobody looks: another record stands there now.
    marks = json.loads(mark["marks"])
    marks[1] = f"{before.offset}:{'0' * 16}"
    deployment.redis.hset(row, "marks", json.dumps(marks))
    worker = deployment.start("after")
    until(lambda: 0 in halted(worker), 30)
    at = f"{deployment.sources[1]}/0 holds another record at offset {before.offset}"
    assert at in halted(worker)[0]


def test_adopt_goes_back_to_where_the_log_was_cut_however_far_it_has_grown_since() -> None:
    settings = Settings(kafka=KafkaSettings(mixed="events", partitions=1))
    for end in (90, 95, 300):
        mark = Watermark((120,), (START_MS,), Identity(7, "w"), "a", ("90:cut",), "f", "g")
        bounds = Bounds(0, end)
        found = Found(mark, False, None, (bounds,), bounds, "a", (True,))
        plan = adopt(settings, 0, found)
        assert plan.watermark is not None
        assert (plan.watermark.positions, plan.watermark.marks) == ((90,), ("",))
        assert plan.notes[0] == "events was cut at 90: goes on from there"


@pytest.mark.parametrize("seqs", [(7, 9), (9, 7)])
def test_whatever_is_recovered_goes_on_above_what_was_committed_and_what_was_published(
    seqs: tuple[int, int],
) -> None:
    settings = Settings(kafka=KafkaSettings(mixed="events", partitions=1))
    held, said = (Identity(seq, "w") for seq in seqs)
    mark = Watermark((120,), (START_MS,), held, "a", ("90:cut",), "f", "g")
    bounds = Bounds(0, 300)
    found = Found(mark, False, Published(said, (100,), "a"), (bounds,), bounds, "a", (True,))
    plans = adopt(settings, 0, found), wipe(settings, 0, found, "g"), serve(settings, 0, found, "g")
    assert [plan.watermark.identity.seq for plan in plans if plan.watermark] == [9, 9, 9]


def test_what_is_kept_is_published_anew_and_silence_ends_where_this_log_was_published() -> None:
    settings = Settings(kafka=KafkaSettings(mixed="events", partitions=1))
    said, bounds = Identity(9, "w"), Bounds(0, 300)
    mark = Watermark((120,), (START_MS,), Identity(7, "w"), "a", ("90:cut",), "f", "g")

    def found(positions: int, log_id: str) -> Found:
        published = Published(said, (positions,), log_id)
        return Found(mark, False, published, (bounds,), bounds, "a", (True,))

    for plan in (adopt(settings, 0, found(100, "a")), serve(settings, 0, found(100, "a"), "g")):
        assert plan.watermark is not None
        assert plan.watermark.progress == sweep.PENDING
    for positions, log_id, published in [
        (200, "a", None),  # ahead in this log: in silence up to there
        (200, "b", said),  # of another log, where its positions say nothing
        (400, "a", said),  # beyond this log's end: never reached
        (100, "a", None),
    ]:
        assert wipe(settings, 0, found(positions, log_id), "g").published == published
    assert serve(settings, 0, found(100, "a"), "g").published == said  # not ahead of what was built


def test_a_worker_that_is_pointed_at_the_redis_of_others_halts_and_they_go_on(
    deployment: Deployment, stack: Stack, tmp_path: Path, topic_prefix: str
) -> None:
    send_all(deployment, list(some_events(500, 60)))
    worker = deployment.start()
    deployment.settle()
    marks = deployment.watermarks()
    url = deployment.settings.store.url.get_secret_value()
    settings = deployment_settings(stack.bootstrap, url, f"{topic_prefix}other.")
    topics.apply(settings)
    stray = Deployment(settings, tmp_path)  # not entered, since that empties the database
    meta = json.loads(deployment.redis.get("lv:meta") or b"")
    deployment.redis.set("lv:meta", json.dumps({**meta, "extra": {}}))  # as before it named the app
    asked = datetime.now(UTC)
    done = livevalue(stray, "run", code=1)
    (line,) = plain_lines(done)
    noticed(json_lines(done, "partition halted"), asked)
    assert f'LIVEVALUE_KAFKA__BROWSE ("{deployment.sources[0]}" in the store' in line
    assert "Is it the Redis of this deployment (LIVEVALUE_STORE__URL)?" in line
    with pytest.raises(StoreMismatch, match="LIVEVALUE_STORE__URL"):
        recover(stray, "adopt")
    for row in (*recover(stray, "wipe", dry_run=True), *recover(stray, "rebuild", dry_run=True)):
        assert "set LIVEVALUE_STORE__URL" in " ".join(row["notes"])
    assert deployment.watermarks() == marks
    # One that folds the same topics under another name is told by that.
    deployment.redis.set("lv:meta", json.dumps(meta))
    kafka = deployment.settings.kafka
    named = {name: f"{topic_prefix}staging.{name}" for name in ("app", "scores", "dlq")}
    settings = deployment.settings.model_copy(update={"kafka": kafka.model_copy(update=named)})
    topics.apply(settings)
    done = livevalue(Deployment(settings, tmp_path), "run", code=1)
    (line,) = plain_lines(done)
    assert f"holds the deployment of app {kafka.app!r}" in line and "LIVEVALUE_STORE__URL" in line
    assert deployment.watermarks() == marks
    send_all(deployment, list(some_events(100, 60, seed=2, first=500)))
    deployment.settle()
    assert not worker.lines("partition forgotten")
    assert deployment.audit().clean


def test_a_lost_store_is_rebuilt_from_archive_and_log_and_from_the_archive_alone(
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
    delete_before(deployment, deployment.ends())
    send_all(deployment, events[1500:1700])
    deployment.redis.flushdb()
    with pytest.raises(Refused, match="name the archive that holds it"):
        recover(deployment, "rebuild", dry_run=True)
    plan = recover(deployment, "rebuild", archive=archive)
    assert [row["store"] for row in plan] == ["main", "main"]
    send_all(deployment, events[1700:])
    for source in range(3):
        deployment.send_raw(source, b"u7", None)
    deployment.flush()
    wanted = {u: n for u, n in spent_cents(events).items() if u != "u7"}
    worker = deployment.start("after")
    deployment.settle()
    time.sleep(1.0)
    deployment.settle()
    assert held_cents(deployment) == wanted
    assert before.keys() <= wanted.keys() | {"u7"}
    said_once_and_last(deployment)
    assert worker.stop() == 0

    # Now everything: Redis, the log, what was published. What is left is the archive.
    asyncio.run(archive_log(deployment.settings, archive))
    was = digest(deployment)
    make_again(deployment, *(t.name for t in topics.wanted(deployment.settings.kafka)))
    deployment.redis.flushdb()
    plan = recover(deployment, "rebuild", archive=archive, dry_run=True)
    assert all(row["to"] == [0, 0, 0] for row in plan)
    assert all(" ".join(row["notes"]).count("was made again since") == 3 for row in plan)
    assert recover(deployment, "rebuild", archive=archive) == plan
    assert digest(deployment) == was
    # And on from there: the new topics are read from their beginning, on top of it.
    deployment.start("anew")
    until(lambda: last_scores(deployment).keys() >= wanted.keys(), 60)
    assert held_cents(deployment) == wanted
    late = {"event_id": "gone", "user_id": "u7", "event_time": START_MS, "amount": "1.00"}
    new = [(1, {**late, "event_id": f"n{u}", "user_id": u}) for u in ("u1", "u2", "u3", "u7")]
    send_all(deployment, new)
    deployment.settle()
    wanted = {u: n + 100 * (u in ("u1", "u2", "u3")) for u, n in wanted.items()} | {"u7": 100}
    assert held_cents(deployment) == wanted
    said_once_and_last(deployment)
