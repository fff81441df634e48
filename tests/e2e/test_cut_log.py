"""An unclean truncation, for real: a broker comes back with less in its files than it had said.

Its own broker, since it is killed and its segments are cut. Beside it, a second Kafka: a worker of
another deployment, of the same topic names, on the same Redis.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer  # type: ignore[import-untyped]

from featurestore.partitioner import partition
from livevalue.embedded import Stack
from livevalue.embedded.kafka import Kafka
from streams import topics
from streams.broker import connection
from tests.e2e.deployment import Deployment, deployment_settings, send_all, some_events
from tests.e2e.losses import (
    ask,
    began,
    halted,
    held_cents,
    last_scores,
    livevalue,
    noticed,
    plain_lines,
    recover,
    said_once_and_last,
    until,
)

pytestmark = pytest.mark.long

_DATABASE = 15


@pytest.fixture
def own(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Deployment, Kafka]]:
    """A deployment of three partitions on a broker of its own."""
    url = stack.redis_url.rsplit("/", 1)[0] + f"/{_DATABASE}"
    folder = tmp_path_factory.mktemp("own")
    with Stack.started(folder, redis_url=url) as broker:
        assert broker.kafka is not None
        settings = deployment_settings(broker.bootstrap, url, "own.", partitions=3)
        with Deployment(settings, folder) as made:
            yield made, broker.kafka


def cut(kafka: Kafka, topic: str, number: int, least: int) -> int:
    """Take whole batches off the end of a stopped broker's log; -> the offset where it ends now.

    least: records to be lost. A batch begins with its first offset and its length (Kafka's record
    format, version 2).
    """
    (segment,) = (kafka.data / f"{topic}-{number}").glob("*.log")
    raw, at, batches = segment.read_bytes(), 0, list[tuple[int, int]]()
    while at < len(raw):
        first, length = struct.unpack_from(">qi", raw, at)
        batches.append((first, at))
        at += 12 + length
    (last,) = struct.unpack_from(">i", raw, batches[-1][1] + 23)
    end = batches[-1][0] + int(last) + 1
    offset, place = next(b for b in reversed(batches) if b[0] <= end - least)
    assert offset > 0
    segment.write_bytes(raw[:place])
    return offset


def lives(deployment: Deployment, event: tuple[int, dict[str, Any]]) -> int:
    """Partition of an event's user."""
    kafka = deployment.settings.kafka
    return partition(event[1]["user_id"], kafka.partitions, kafka.partitioner)


def spent_in_the_log(deployment: Deployment) -> dict[str, int]:
    """Cents of each user by what the topics hold now."""
    spent: dict[str, int] = {}
    for s, topic in enumerate(deployment.sources):
        for r in deployment.read(topic):
            user = r.key.decode()
            spent[user] = spent.get(user, 0) + (cents_of(r) if s == 1 else 0)
    return spent


def cents_of(record: Any) -> int:
    return round(float(json.loads(record.value)["amount"]) * 100)


def lose(
    deployment: Deployment, kafka: Kafka, numbers: tuple[int, ...], lost_cents: dict[str, int]
) -> dict[int, int]:
    """The broker dies and comes back without the end of these partitions' purchases.

    -> where each ends then; what the lost ones had spent is added to `lost_cents`.
    """
    topic = deployment.sources[1]
    bought = deployment.read(topic)
    kafka.kill()
    left = {p: cut(kafka, topic, p, 10) for p in numbers}
    for r in bought:
        if r.offset >= left.get(r.partition, r.offset + 1):
            user = r.key.decode()
            lost_cents[user] = lost_cents.get(user, 0) + cents_of(r)
    deployment.producer.close(timeout=0)
    deployment._producer = None  # the log has forgotten what the old one has sent
    kafka.start()
    return left


def fill(
    deployment: Deployment, events: list[tuple[int, dict[str, Any]]], number: int, count: int
) -> None:
    """So many new purchases of users of a partition."""
    some = [e for _, e in events if "amount" in e and lives(deployment, (1, e)) == number]
    named = f"f{deployment.sent}"
    send_all(
        deployment,
        [(1, {**some[n % len(some)], "event_id": f"{named}.{n}"}) for n in range(count)],
    )


def test_a_log_that_was_cut_halts_what_it_concerns_and_others_redis_is_left_to_them(
    own: tuple[Deployment, Kafka], stack: Stack
) -> None:
    deployment, kafka = own
    worker = deployment.start(LIVEVALUE_WORKER__METRICS_PORT="0")
    events = list(some_events(2000, 90))
    for low in range(0, 1500, 100):
        send_all(deployment, events[low : low + 100])
    deployment.settle()

    # A worker of the same topic names on another Kafka, pointed at this Redis.
    other = deployment.settings.kafka.model_copy(update={"bootstrap": stack.bootstrap})
    settings = deployment.settings.model_copy(update={"kafka": other})
    topics.apply(settings)
    stray = Deployment(settings, deployment.folder)  # not entered, since that empties the database
    marks = deployment.watermarks()
    (line,) = plain_lines(livevalue(stray, "run", code=1))
    assert "is one that the store was folded from. Is it the Redis of this deployment" in line
    for action in ("adopt", "wipe", "rebuild"):
        for row in recover(stray, action, dry_run=True):
            assert "set LIVEVALUE_STORE__URL" in " ".join(row["notes"])
    assert deployment.watermarks() == marks
    admin = KafkaAdminClient(bootstrap_servers=stack.bootstrap)
    admin.delete_topics([t.name for t in topics.wanted(other)])
    admin.close()
    assert not worker.lines("partition forgotten")

    # The broker dies and comes back without the end of two partitions' logs; one is written on at
    # once, beyond where it had been.
    topic, lost_cents = deployment.sources[1], dict[str, int]()
    left = lose(deployment, kafka, (0, 1), lost_cents)
    assert lost_cents
    before = deployment.positions()
    fill(deployment, events[1500:], 1, before[1, 1] - left[1] + 20)
    back = datetime.now(UTC)
    assert deployment.ends()[1, 1] > before[1, 1]
    until(lambda: sorted(halted(worker)) == [0, 1], 30)
    noticed(worker.lines("partition halted"), back)
    said = halted(worker)
    assert f"{topic}/0 ends at offset {left[0]}, yet {before[0, 1]} was folded" in said[0]
    assert f"{topic}/1 was cut at offset {left[1]} and written on" in said[1]
    assert all("livevalue recover adopt --dry-run" in text for text in said.values())
    assert ask(worker, "/readyz") == (503, "halted: [0, 1]\n")
    # The third goes on.
    send_all(deployment, [e for e in events[1500:] if lives(deployment, e) == 2])
    until(
        lambda: all(deployment.positions()[2, s] == deployment.ends()[2, s] for s in range(3)), 30
    )
    assert worker.exit_code is None

    plan = recover(deployment, "adopt", dry_run=True)
    assert [row["changes"] for row in plan] == [True, True, False]
    assert [plan[p]["to"][1] for p in (0, 1)] == [left[0], left[1]]
    assert [plan[p]["notes"][0] for p in (0, 1)] == [
        f"{topic} was cut at {left[p]}: goes on from there" for p in (0, 1)
    ]
    assert worker.stop() == 0
    # Started again it knows of the cut by the store.
    worker = deployment.start("again")
    until(lambda: sorted(halted(worker)) == [0, 1], 30)
    noticed(worker.lines("partition halted"), began(worker))
    assert halted(worker)[1] == said[1]
    assert worker.stop() == 0

    # Adopted, nothing of what the log holds is missing; what it lost is kept.
    assert recover(deployment, "adopt") == plan
    worker = deployment.start("after")
    deployment.settle()
    now, ever = spent_in_the_log(deployment), held_cents(deployment)
    for user, cents in lost_cents.items():
        now[user] = now.get(user, 0) + cents
    assert ever == now
    assert worker.stop() == 0
    # A rebuild holds what the log holds, neither more nor less.
    recover(deployment, "rebuild")
    deployment.start("rebuilt")
    deployment.settle()
    until(lambda: last_scores(deployment).keys() >= now.keys(), 30)
    assert held_cents(deployment) == spent_in_the_log(deployment)
    said_once_and_last(deployment)


def test_a_cut_that_nobody_saw_halts_whoever_comes_next(own: tuple[Deployment, Kafka]) -> None:
    deployment, kafka = own
    topic, lost_cents = deployment.sources[1], dict[str, int]()
    events = list(some_events(2000, 90))
    worker = deployment.start()
    for low in range(0, 1000, 100):
        send_all(deployment, events[low : low + 100])
    deployment.settle()

    # Written on beyond where it was, and a worker that reads there and dies.
    before = deployment.positions()[1, 1]
    left = lose(deployment, kafka, (1,), lost_cents)[1]
    fill(deployment, events[1000:], 1, before - left + 20)
    until(lambda: deployment.positions()[1, 1] > before or bool(halted(worker)), 30)
    worker.kill()
    worker = deployment.start("next")
    until(lambda: list(halted(worker)) == [1], 30)
    noticed(worker.lines("partition halted"), began(worker))
    assert f"{topic}/1 was cut at offset {left} and written on" in halted(worker)[1]
    assert worker.stop() == 0
    recover(deployment, "adopt")
    worker = deployment.start("adopted")
    deployment.settle()
    assert worker.stop() == 0

    # The same while no worker runs: it is known from where to read again, too.
    before = deployment.positions()[1, 1]
    left = lose(deployment, kafka, (1,), lost_cents)[1]
    fill(deployment, events[1500:], 1, before - left + 20)
    worker = deployment.start("later")
    until(lambda: list(halted(worker)) == [1], 30)
    assert f"{topic}/1 was cut at offset {left} and written on" in halted(worker)[1]
    assert worker.stop() == 0
    (plan,) = [row for row in recover(deployment, "adopt") if row["changes"]]
    assert (plan["partition"], plan["to"][1]) == (1, left)
    deployment.start("last")
    deployment.settle()
    now = spent_in_the_log(deployment)
    for user, cents in lost_cents.items():
        now[user] = now.get(user, 0) + cents
    assert held_cents(deployment) == now
    said_once_and_last(deployment)


def test_values_that_a_broker_has_lost_are_said_again(own: tuple[Deployment, Kafka]) -> None:
    """The end of partitions of `scores`: under a worker, while none runs, its place taken since."""
    deployment, kafka = own
    events, worker = list(some_events(900, 60)), deployment.start()
    for low in range(0, 900, 90):  # a transaction each, at least
        send_all(deployment, events[low : low + 90])
        deployment.settle()
    scores = deployment.settings.kafka.scores

    def lose_values(number: int) -> None:
        kafka.kill()
        cut(kafka, scores, number, 10)
        kafka.start()

    def all_said() -> bool:
        said = {u: json.loads(d)["revision"] for u, d in last_scores(deployment).items() if d}
        for key in deployment.redis.scan_iter("lv:{*}:v:*", count=1000):
            document: Any = deployment.redis.get(key)
            user = key.decode().partition(":v:")[2]
            if said.pop(user, None) != json.loads(document)["revision"]:
                return False
        return not said

    assert all_said()
    lose_values(0)
    back = datetime.now(UTC)
    until(all_said, 30)
    what = "values on scores were lost, publishing every user again"
    assert [(x["partition"], x["why"]) for x in worker.lines(what)] == [(0, "the topic was cut")]
    noticed(worker.lines(what), back)
    assert worker.stop() == 0
    lose_values(1)
    worker = deployment.start("next")
    until(all_said, 30)
    assert [(x["partition"], x["why"]) for x in worker.lines(what)] == [(1, "the topic was cut")]
    assert not halted(worker) and worker.stop() == 0
    lose_values(2)
    abort(deployment, scores, 2, 100)
    worker = deployment.start("after")
    until(all_said, 30)
    assert [(x["partition"], x["why"]) for x in worker.lines(what)] == [(2, "the topic was cut")]
    assert not halted(worker)
    said_once_and_last(deployment)


def abort(deployment: Deployment, topic: str, number: int, records: int) -> None:
    """A transaction that never was."""
    kafka = deployment.settings.kafka
    producer = KafkaProducer(**connection(kafka), transactional_id=f"{kafka.app}-other")
    producer.init_transactions()
    producer.begin_transaction()
    for n in range(records):
        producer.send(topic, b"{}", key=f"u{n}".encode(), partition=number)
    producer.flush()
    producer.abort_transaction()
    producer.close()
