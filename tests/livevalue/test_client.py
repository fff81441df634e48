"""ValueClient against real servers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime
from itertools import islice

import pytest
import redis
from kafka import KafkaProducer  # type: ignore[import-untyped]

from featurestore.errors import StoreError
from featurestore.partitioner import partition
from livevalue import ValueClient
from livevalue.embedded import Stack
from scoring.values import UserValue
from streams import broker, topics
from streams.errors import TopicError
from streams.settings import Settings
from tests.livevalue.values import AS_OF, PARTITIONS, document, publish, settings

WORTH = {"ada": 10.0, "bob": 30.0, "eve": 20.0, "zoë ✓": 40.0}


@pytest.fixture
def deployment(stack: Stack, topic_prefix: str) -> Settings:
    found = settings(stack.bootstrap, stack.redis_url, 9, topic_prefix)
    redis.Redis.from_url(found.store.url.get_secret_value()).flushdb()
    return found


async def test_get_reads_what_the_worker_wrote(deployment: Settings) -> None:
    """From inside a running event loop, too, as in a notebook."""
    await publish(deployment, WORTH)
    with ValueClient.connect(deployment) as values:
        for user, value in WORTH.items():
            found = values.get(user, datetime.fromisoformat(AS_OF))
            assert found == document(user, value)
        assert values.get("nobody") is None


async def test_get_at_a_time_follows_the_silence_curve(deployment: Settings) -> None:
    await publish(deployment, WORTH)
    with ValueClient.connect(deployment) as values:
        found = values.get("ada", datetime(2011, 9, 11, 12, tzinfo=UTC))
        assert found is not None
        assert found["as_of"] == "2011-09-11T12:00:00Z"
        assert found["values"]["d90"] == {"expected": 7.5, "p_active": 0.375}
        now = values.get("ada")
        assert now is not None
        assert now["values"]["d90"]["expected"] == 5.0, "the last knot holds"
        assert now["values"]["d90"]["p90"] == 3.0, "as last published"
        UserValue.model_validate(now)


async def test_now_is_the_logs_time_where_history_is_played_in(deployment: Settings) -> None:
    await publish(deployment, WORTH, clock="log")
    with ValueClient.connect(deployment) as values:
        now = values.get("ada")
        assert now is not None
        assert now["as_of"] == "2011-09-11T12:00:00Z", "the latest clock of any source"


async def test_top_ranks_over_all_partitions(deployment: Settings) -> None:
    await publish(deployment, WORTH)
    assert len({partition(user, PARTITIONS) for user in WORTH}) > 1
    with ValueClient.connect(deployment) as values:
        ranked = [found["user_id"] for found in values.top(3)]
        assert ranked == ["zoë ✓", "bob", "eve"]
        assert len(values.top(20)) == 4


def test_without_a_worker_there_are_no_values_yet(deployment: Settings) -> None:
    with (
        ValueClient.connect(deployment) as values,
        pytest.raises(StoreError, match="start a worker"),
    ):
        values.get("ada")


def test_subscribe_without_topics_says_what_to_run(deployment: Settings) -> None:
    with (
        ValueClient.connect(deployment) as values,
        pytest.raises(TopicError, match="livevalue topics --apply"),
    ):
        values.subscribe()


async def test_subscribe_sees_committed_updates_only(deployment: Settings) -> None:
    await publish(deployment, WORTH)
    topics.apply(deployment)
    with ValueClient.connect(deployment) as values:
        updates = values.subscribe(idle_s=20)
        producer = KafkaProducer(
            **broker.connection(deployment.kafka),
            acks="all",
            transactional_id=deployment.kafka.scores,
        )
        producer.init_transactions()
        for revision, commits in ((1, False), (2, True)):
            producer.begin_transaction()
            for user in ("ada", "bob"):
                producer.send(
                    deployment.kafka.scores,
                    json.dumps(document(user, 1.0, revision)).encode(),
                    key=user.encode(),
                    partition=partition(user, PARTITIONS),
                ).get(timeout=20)
            if commits:
                producer.commit_transaction()
            else:
                producer.abort_transaction()
        seen = [(found["user_id"], found["revision"]) for found in islice(updates, 2)]
        assert sorted(seen) == [("ada", 2), ("bob", 2)]

        only_bob = values.subscribe("bob", from_beginning=True, idle_s=1)
        producer.begin_transaction()
        producer.send(
            deployment.kafka.scores, None, key=b"bob", partition=partition("bob", PARTITIONS)
        )
        producer.commit_transaction()
        producer.close()
        heard = list(only_bob)
        assert [found.get("revision") for found in heard] == [2, None]
        assert heard[-1] == {"user_id": "bob", "erased": True}


async def test_one_client_serves_several_threads(deployment: Settings) -> None:
    await publish(deployment, WORTH)
    wrong: list[object] = []
    with ValueClient.connect(deployment) as values:

        def read(user: str) -> None:
            for _ in range(50):
                found = values.get(user)
                if found is None or found["user_id"] != user:
                    wrong.append(found)

        threads = [threading.Thread(target=read, args=(user,)) for user in WORTH]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_client_can_be_closed_twice(deployment: Settings) -> None:
    values = ValueClient.connect(deployment)
    values.close()
    values.close()


def test_using_a_client_loads_neither_torch_nor_faust() -> None:
    code = (
        "import sys, livevalue; from livevalue import ValueClient; ValueClient.connect().close();"
        "print([m for m in ('torch', 'faust', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
