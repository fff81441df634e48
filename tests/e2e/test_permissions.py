"""Who may do what: each role works under the sample permissions of docs/acl, and no further.

What docs/security.md says of worker, reader and operator, on real servers with their permissions.
How one gets in, and what a refusal says, is in tests.e2e.test_security.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx
import pytest
import redis
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from kafka.admin import ACL, ConfigResource, NewTopic, ResourceType  # type: ignore[import-untyped]
from kafka.errors import TopicAuthorizationFailedError  # type: ignore[import-untyped]
from kafka.producer import KafkaProducer  # type: ignore[import-untyped]

from streams import broker, topics
from streams.errors import StreamsError
from streams.settings import KafkaSettings
from tests.e2e.deployment import Deployment, WorkerProcess, environment, send_all, some_events
from tests.e2e.losses import held_cents
from tests.e2e.replicas import wait_for
from tests.forks import COMMAND, Fork
from tests.secure.place import Place, place, start
from tests.secure.roles import allow, kafka_acls

__all__ = ["place"]

USERS = 12
_corners = count(1)  # a database of Redis and names of topics each


@pytest.fixture(scope="module")
def shop(place: Place) -> Iterator[Deployment]:
    """Values of some users and one dead letter, made by a worker who goes on until the end."""
    with Deployment(place.root, place.folder) as made:
        worker = fill(place, made)
        yield made
        assert worker.stop() == 0
        said = worker.log.read_text()
        assert "NOPERM" not in said and "Authorization" not in said, said


@pytest.fixture
def corner(place: Place) -> Iterator[tuple[Deployment, str, int]]:
    """A deployment to change at will: itself, the prefix of its names, its database."""
    database = next(_corners)
    prefix = f"corner{database}."
    with place.corner(prefix, database) as made:
        yield made, prefix, database


def fill(place: Place, shop: Deployment, prefix: str = "", database: int = 0) -> WorkerProcess:
    worker = work(place, shop, prefix, database)
    send_all(shop, list(some_events(200, USERS)))
    shop.send_raw(1, b"u1", b"no event")
    shop.flush()
    shop.settle()
    return worker


def work(place: Place, shop: Deployment, prefix: str = "", database: int = 0) -> WorkerProcess:
    """A worker under the worker's account."""
    name = f"{prefix}worker{len(shop.workers)}"
    worker = WorkerProcess(
        place.role("worker", prefix, database), place.folder / f"{name}.log", fork=True
    )
    shop.workers[name] = worker
    return worker


# ---- worker


def test_a_worker_touches_only_its_own(place: Place) -> None:
    options = broker.connection(place.log())
    for topic in place.log().sources:
        _may_not_produce(options, topic)
    cache = _account(place, "worker")
    _refuses(
        cache, ["GET", "other"], ["SET", "other", "x"], ["FLUSHALL"], ["FLUSHDB"], ["KEYS", "*"]
    )
    _refuses(cache, ["CONFIG", "SET", "maxmemory", "1"], ["ACL", "LIST"], ["SHUTDOWN"])
    _refuses(cache, ["FUNCTION", "DELETE", "livevalue"], ["REPLICAOF", "NO", "ONE"])
    cache.close()


def test_a_worker_makes_changes_and_deletes_no_topic(place: Place) -> None:
    _may_not_change_topics(place, "worker")


@pytest.mark.long
def test_a_worker_asks_at_its_start_for_everything_it_will_have_to_do(place: Place) -> None:
    prefix = f"corner{next(_corners)}."
    settings = place.role("worker", prefix)
    topics.apply(place.everything(prefix))
    needed = kafka_acls(prefix, ("worker",))
    allow(place.kafka.bootstrap, needed)
    start(settings)
    for one in needed:
        # Whether a transactional id may be written is not to be asked, only whether it is ours.
        kind = one.resource_pattern.resource_type
        taken = [p for p in needed if p.resource_pattern.resource_type == kind]
        taken = taken if kind == ResourceType.TRANSACTIONAL_ID else [one]
        if len(taken) > 1:
            _take_away(place, [p for p in taken if p.operation.name == "WRITE"])
            start(settings)
        _take_away(place, taken)
        with pytest.raises(StreamsError) as caught:
            start(settings)
        said = str(caught.value)
        assert one.resource_pattern.resource_name in said, (one, said)
        assert "LIVEVALUE_KAFKA__USERNAME" in said
        allow(place.kafka.bootstrap, taken)
    start(settings)


# ---- reader


def test_a_reader_reads_values_and_nothing_else(place: Place, shop: Deployment) -> None:
    reader = place.role("reader").kafka
    options = broker.connection(reader)
    for topic in ("scores", "events.purchase", "events.dlq"):
        _may_not_produce(options, topic)
    _may_not_change_topics(place, "reader")
    cache = _account(place, "reader")
    assert cache.get("lv:meta") is not None
    _refuses(cache, ["SET", "lv:meta", "x"], ["DEL", "lv:meta"], ["GET", "other"])
    _refuses(cache, ["FCALL", "f", "0"], ["FUNCTION", "LOAD", "x"], ["FLUSHALL"])
    cache.close()


def test_a_reader_sees_no_state_for_that_holds_a_users_latest_events(
    place: Place, shop: Deployment
) -> None:
    cache = _account(place, "reader")
    states = [key.decode() for key in shop.redis.scan_iter("lv:main:{?}:s:*")]
    assert len(states) == USERS
    for key in states:
        _refuses(cache, ["GET", key], ["MGET", key], ["HGETALL", key])
    for key in ("lv:{0}:out", "lv:{0}:seq", "lv:main:{0}:due", "lv:blob:generations/index.json"):
        _refuses(cache, ["GET", key])
    # A user may be named so that the state's key reads like a watermark's, which readers may see.
    state = "lv:main:{0}:s:u:{0}:wm"
    shop.redis.set(state, "a state")
    try:
        _refuses(cache, ["GET", state], ["MGET", state])
        with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
            cache.hgetall(state)
    finally:
        shop.redis.delete(state)
    cache.close()


def test_a_reader_sees_neither_events_nor_dead_letters(place: Place, shop: Deployment) -> None:
    reader = place.role("reader").kafka
    hidden = {*reader.sources, reader.dlq, reader.published}
    everything = hidden | {reader.scores}
    assert _seen(place.root.kafka, everything) == everything
    assert _seen(reader, everything) == {reader.scores}
    consumer = KafkaConsumer(**broker.connection(reader), enable_auto_commit=False)
    try:
        assert not consumer.topics() & hidden
    finally:
        consumer.close()
    done = place.run("reader", "dlq", "ls")
    assert done.returncode == 1
    assert "reader may not DESCRIBE topic events.dlq" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("get", "u1"),
        ("top", "-n", "3"),
        ("subscribe", "--from-beginning", "-n", "3", "--idle", "20"),
    ],
)
def test_what_a_reader_runs_works_under_the_sample_permissions(
    place: Place, shop: Deployment, words: tuple[str, ...]
) -> None:
    done = place.run("reader", *words, "--json", "-")
    assert done.returncode == 0, done.stderr
    assert '"user_id"' in done.stdout.replace(" ", "")


def test_a_reader_exports_all_values_under_the_sample_permissions(
    place: Place, shop: Deployment
) -> None:
    done = place.run("reader", "export", "values.jsonl", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == USERS


def test_what_a_reader_serves_works_under_the_sample_permissions(
    place: Place, shop: Deployment
) -> None:
    at, log = place.folder / "serve.json", place.folder / "serve.log"
    env = {**os.environ, **environment(place.role("reader"))}
    words = ["serve", "--port", "0", "--json", str(at)]
    server = Fork(COMMAND, words, cwd=place.folder, env=env, stdout=log)
    try:
        wait_for(lambda: at.exists() and at.read_text().endswith("\n"), 20)
        url = json.loads(at.read_text())["url"]
        wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 200, 20)
        assert httpx.get(f"{url}/v1/users/u1").json()["user_id"] == "u1"
        assert len(httpx.get(f"{url}/v1/top?n=3").json()) == 3
        server.terminate()
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.wait(10)
    said = log.read_text()
    assert "NOPERM" not in said and "Authorization" not in said, said


# ---- operator


def test_an_operator_deletes_nothing_and_configures_no_server(place: Place) -> None:
    operator = place.role("operator")
    assert {step.action for step in topics.apply(operator)} == {"keep"}
    admin = KafkaAdminClient(**broker.connection(operator.kafka))
    try:
        for topic in topics.wanted(operator.kafka):
            with pytest.raises(TopicAuthorizationFailedError):
                admin.delete_topics([topic.name])
    finally:
        admin.close()
    cache = _account(place, "operator")
    assert cache.info("server")
    assert cache.time()
    assert cache.config_get("maxmemory-policy")
    _refuses(cache, ["CONFIG", "SET", "maxmemory", "1"], ["FLUSHALL"], ["FLUSHDB"], ["ACL", "LIST"])
    _refuses(cache, ["GET", "other"], ["SHUTDOWN"], ["KEYS", "*"])
    cache.close()


def test_an_operator_makes_the_topics_and_compacts_the_outputs(place: Place) -> None:
    prefix = f"corner{next(_corners)}."
    allow(place.kafka.bootstrap, kafka_acls(prefix, ("operator",)))
    scores = place.log(prefix=prefix).scores
    admin = KafkaAdminClient(bootstrap_servers=place.kafka.bootstrap)
    admin.create_topics([NewTopic(scores, 2, 1)])
    admin.close()
    planned = place.run("operator", "topics", "--plan", "--json", "-", prefix=prefix)
    assert "create" in planned.stdout, planned.stderr
    done = place.run("operator", "topics", "--apply", "--json", "-", prefix=prefix)
    assert done.returncode == 0, done.stderr
    steps = {one["name"]: one["action"] for one in json.loads(done.stdout)["topics"]}
    assert steps.pop(scores) == "compact"
    assert set(steps.values()) == {"create"}
    topics.require(place.role("operator", prefix))


def test_a_refused_compaction_is_said_and_not_taken_for_done(place: Place) -> None:
    prefix = f"corner{next(_corners)}."
    given = kafka_acls(prefix, ("operator",))
    allow(place.kafka.bootstrap, [p for p in given if p.operation.name != "ALTER_CONFIGS"])
    scores = place.log(prefix=prefix).scores
    admin = KafkaAdminClient(bootstrap_servers=place.kafka.bootstrap)
    admin.create_topics([NewTopic(scores, 2, 1)])
    admin.close()
    with pytest.raises(StreamsError, match=f"operator may not ALTER_CONFIGS topic {scores}"):
        topics.apply(place.role("operator", prefix))


@pytest.mark.long
def test_an_operator_looks_at_everything(place: Place, shop: Deployment) -> None:
    for words, holds in (
        (("doctor",), "within 2 s of Redis"),
        (("dlq", "ls"), '"not_json"'),
        (("dlq", "show", "0:0"), "no event"),
        (("stores", "ls"), '"main"'),
        (("recover", "adopt", "--dry-run"), "nothing to do"),
        (("recover", "wipe", "--dry-run"), '"plan"'),
        (("recover", "rebuild", "--dry-run"), '"plan"'),
        (("verify",), '"different": 0'),
    ):
        done = place.run("operator", *words, "--json", "-")
        assert done.returncode == 0, (words, done.stderr)
        assert holds in done.stdout, (words, done.stdout)


def test_an_operator_erases_a_user_and_sends_dead_letters_again(
    place: Place, shop: Deployment
) -> None:
    letters = len(shop.read("events.dlq"))
    assert place.run("reader", "get", "u2").returncode == 0
    done = place.run("operator", "erase", "u2")
    assert done.returncode == 0, done.stderr
    done = place.run("operator", "dlq", "replay", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sent"] == letters
    shop.settle()
    assert len(shop.read("events.dlq")) == 2 * letters  # they are no events still
    gone = place.run("reader", "get", "u2")
    assert gone.returncode == 1
    assert "no value is known" in gone.stderr


@pytest.mark.long
def test_an_operator_recovers_a_lost_store_and_lets_another_serve(
    place: Place, corner: tuple[Deployment, str, int]
) -> None:
    shop, prefix, database = corner
    assert fill(place, shop, prefix, database).stop() == 0
    spent = held_cents(shop)

    def run(*words: str) -> None:
        done = place.run("operator", *words, prefix=prefix, database=database)
        assert done.returncode == 0, (words, done.stderr)

    run("recover", "adopt")
    run("recover", "wipe")
    assert not held_cents(shop)
    run("recover", "rebuild")
    run("backfill", "kafka", "--store", "aside")
    worker = work(place, shop, prefix, database)
    run("stores", "flip", "aside")
    assert all(shop.redis.get(f"lv:{{{p}}}:active") == b"aside" for p in range(2))
    run("stores", "drop", "main")
    assert not shop.watermarks("main")
    shop.settle()
    assert held_cents(shop) == spent
    assert worker.stop() == 0


# ---- what is tried


def _account(place: Place, role: str) -> redis.Redis:
    return redis.Redis(
        host="localhost",
        port=place.redis.port,
        username=role,
        password=f"{role}-password",
        ssl=True,
        ssl_ca_certs=str(place.certificates.authority),
    )


def _refuses(cache: redis.Redis, *commands: list[str]) -> None:
    for words in commands:
        with pytest.raises(redis.exceptions.NoPermissionError):
            cache.execute_command(*words)  # type: ignore[no-untyped-call]


def _may_not_produce(options: dict[str, Any], topic: str) -> None:
    producer = KafkaProducer(**options, max_block_ms=5000, enable_idempotence=False)
    try:
        with pytest.raises(TopicAuthorizationFailedError):
            producer.send(topic, b"x").get(5)
    finally:
        producer.close(timeout=2)


def _may_not_change_topics(place: Place, role: str) -> None:
    """Neither make one, nor delete, configure or enlarge those that there are."""
    settings = place.role(role)
    admin = KafkaAdminClient(**broker.connection(settings.kafka))
    try:
        with pytest.raises(TopicAuthorizationFailedError):
            admin.create_topics([NewTopic("events.more", 1, 1)])
        for name in (topic.name for topic in topics.wanted(settings.kafka)):
            with pytest.raises(TopicAuthorizationFailedError):
                admin.delete_topics([name])
            with pytest.raises(TopicAuthorizationFailedError):
                admin.create_partitions({name: 9})
            change = ConfigResource("TOPIC", name, {"retention.ms": "1"})
            # The driver tells a refusal instead of raising it.
            said = admin.alter_configs([change], raise_on_unknown=False)
            assert "TopicAuthorizationFailedError" in said["topic"][name], said
    finally:
        admin.close()


def _take_away(place: Place, permissions: list[ACL]) -> None:
    admin = KafkaAdminClient(bootstrap_servers=place.kafka.bootstrap)
    try:
        admin.delete_acls(permissions)
    finally:
        admin.close()


def _seen(kafka: KafkaSettings, names: set[str]) -> set[str]:
    """Topics of which a record reaches us: all of them, or what has come within two seconds."""
    consumer = KafkaConsumer(
        **broker.connection(kafka), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    found: set[str] = set()
    try:
        consumer.assign([TopicPartition(name, p) for name in names for p in range(2)])
        until = time.monotonic() + 2
        while found < names and time.monotonic() < until:
            found |= {tp.topic for tp in consumer.poll(200)}
        return found
    finally:
        consumer.close()
