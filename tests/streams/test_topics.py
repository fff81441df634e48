"""Topics against a real broker."""

from __future__ import annotations

import socket
import time
from typing import Any

import kafka.errors as driver  # type: ignore[import-untyped]
import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ConfigResource, NewTopic  # type: ignore[import-untyped]
from kafka.net import manager  # type: ignore[import-untyped]

from livevalue.embedded import Stack
from livevalue.embedded.ports import free
from streams import broker, topics
from streams.errors import LogError, LogUnavailable, StreamsError, TopicError
from streams.settings import KafkaSettings, Settings


@pytest.fixture
def settings(stack: Stack, topic_prefix: str) -> Settings:
    return Settings(kafka=_kafka(stack.bootstrap, topic_prefix))


def _kafka(bootstrap: str, prefix: str, **more: object) -> KafkaSettings:
    names = {
        name: f"{prefix}{name}" for name in ("browse", "purchase", "interaction", "scores", "dlq")
    }
    return KafkaSettings.model_validate({"bootstrap": bootstrap, "partitions": 2, **names, **more})


@pytest.fixture
def admin(stack: Stack) -> KafkaAdminClient:
    return KafkaAdminClient(bootstrap_servers=stack.bootstrap)


def test_apply_makes_every_topic_and_check_is_content(settings: Settings) -> None:
    missing = topics.check(settings)
    assert len(missing) == 6
    assert all("livevalue topics --apply" in problem.message for problem in missing)
    assert {step.action for step in topics.plan(settings)} == {"create"}
    assert len(topics.check(settings)) == 6, "plan changes nothing"

    topics.apply(settings)

    assert topics.check(settings) == []
    kept = topics.plan(settings)
    assert {step.action for step in kept} == {"keep"}
    assert [step.partitions for step in kept] == [2, 2, 2, 2, 2, 1]


def test_a_second_apply_changes_nothing(settings: Settings) -> None:
    topics.apply(settings)
    before = topics.topic_ids(settings)
    assert {step.action for step in topics.apply(settings)} == {"keep"}
    assert topics.topic_ids(settings) == before


def test_outputs_are_compacted_and_sources_are_kept_for_good(
    settings: Settings, admin: KafkaAdminClient
) -> None:
    topics.apply(settings)

    def config(topic: str) -> dict[str, str]:
        found = admin.describe_configs([ConfigResource("TOPIC", topic)], config_filter="all")
        return {name: entry["value"] for name, entry in found["topic"][topic].items()}

    assert config(settings.kafka.scores)["cleanup.policy"] == "compact"
    assert config(settings.kafka.published)["cleanup.policy"] == "compact"
    assert config(settings.kafka.browse)["cleanup.policy"] == "delete"
    assert config(settings.kafka.browse)["retention.ms"] == "-1"
    assert config(settings.kafka.dlq)["retention.ms"] == "-1"


def test_a_record_of_two_mebibytes_fits_into_source_and_dead_letters(settings: Settings) -> None:
    topics.apply(settings)
    producer = KafkaProducer(
        **broker.connection(settings.kafka), max_request_size=8 << 20, acks="all"
    )
    for topic in (settings.kafka.purchase, settings.kafka.dlq):
        sent = producer.send(topic, key=b"u", value=b"x" * (2 << 20))
        assert sent.get(timeout=20).offset == 0
    producer.close()


def test_a_recreated_topic_has_another_id(settings: Settings, admin: KafkaAdminClient) -> None:
    topics.apply(settings)
    before = topics.topic_ids(settings)
    assert set(before) == set(settings.kafka.sources)
    admin.delete_topics([settings.kafka.browse])
    with pytest.raises(TopicError, match="does not exist: run `livevalue topics --apply`"):
        topics.topic_ids(settings)
    topics.apply(settings)
    after = topics.topic_ids(settings)
    assert after[settings.kafka.browse] != before[settings.kafka.browse]
    assert after[settings.kafka.purchase] == before[settings.kafka.purchase]


def test_sources_with_different_partition_counts_are_refused(
    settings: Settings, admin: KafkaAdminClient
) -> None:
    admin.create_topics([NewTopic(settings.kafka.purchase, 3, 1)])
    topics.apply(settings)
    (problem,) = topics.check(settings)
    assert f"{settings.kafka.purchase} has 3" in problem.message
    with pytest.raises(TopicError, match="number of partitions"):
        topics.require(settings)


def test_sources_with_another_count_than_the_settings_name_the_setting(
    stack: Stack, topic_prefix: str
) -> None:
    topics.apply(Settings(kafka=_kafka(stack.bootstrap, topic_prefix, partitions=3)))
    found = topics.check(Settings(kafka=_kafka(stack.bootstrap, topic_prefix, partitions=2)))
    assert [problem.message for problem in found] == [
        "the sources have 3 partitions, the settings say 2: set LIVEVALUE_KAFKA__PARTITIONS=3"
    ]
    topics.apply(Settings(kafka=_kafka(stack.bootstrap, f"{topic_prefix}one-", partitions=1)))
    found = topics.check(
        Settings(kafka=_kafka(stack.bootstrap, f"{topic_prefix}one-", partitions=2))
    )
    assert [problem.message for problem in found] == [
        "the sources have 1 partition, the settings say 2: set LIVEVALUE_KAFKA__PARTITIONS=1"
    ]


def test_a_compacted_source_is_refused(settings: Settings, admin: KafkaAdminClient) -> None:
    compacted = {"cleanup.policy": "compact,delete"}
    admin.create_topics([NewTopic(settings.kafka.browse, 2, 1, topic_configs=compacted)])
    topics.apply(settings)
    (problem,) = topics.check(settings)
    assert problem.topic == settings.kafka.browse
    assert "is compacted" in problem.message
    assert "LIVEVALUE_KAFKA__COMPACTED=accept" in problem.message
    with pytest.raises(TopicError, match="is compacted"):
        topics.require(settings)


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
def test_a_compacted_source_that_is_accepted_passes_and_is_named(
    stack: Stack, topic_prefix: str, admin: KafkaAdminClient, policy: str
) -> None:
    settings = Settings(kafka=_kafka(stack.bootstrap, topic_prefix, compacted="accept"))
    config = {"cleanup.policy": policy}
    admin.create_topics([NewTopic(settings.kafka.purchase, 2, 1, topic_configs=config)])
    topics.apply(settings)
    assert topics.check(settings) == []
    topics.require(settings)
    assert topics.compacted(settings) == (settings.kafka.purchase,)
    kept = {step.name: step for step in topics.plan(settings)}
    assert kept[settings.kafka.purchase].action == "keep"


@pytest.mark.parametrize(
    ("policy", "said"), [("delete", "not compacted"), ("compact,delete", "deleted by age as well")]
)
def test_apply_compacts_an_output_that_was_not(
    settings: Settings, admin: KafkaAdminClient, policy: str, said: str
) -> None:
    config = {"cleanup.policy": policy}
    admin.create_topics([NewTopic(settings.kafka.scores, 2, 1, topic_configs=config)])
    assert any(said in problem.message for problem in topics.check(settings))
    done = {step.name: step.action for step in topics.apply(settings)}
    assert done[settings.kafka.scores] == "compact"
    assert topics.check(settings) == []


def test_dead_letters_that_would_be_compacted_are_refused(
    settings: Settings, admin: KafkaAdminClient
) -> None:
    """A key of a bad record says nothing, and one without a key would hold everything up."""
    compacted = {"cleanup.policy": "compact"}
    admin.create_topics([NewTopic(settings.kafka.dlq, 1, 1, topic_configs=compacted)])
    assert {step.name: step.action for step in topics.apply(settings)}[settings.kafka.dlq] == "keep"
    (problem,) = topics.check(settings)
    assert problem.topic == settings.kafka.dlq
    assert "is compacted" in problem.message and "cleanup.policy" in problem.message


def test_an_output_with_another_count_than_the_sources_is_refused(
    settings: Settings, admin: KafkaAdminClient
) -> None:
    compacted = {"cleanup.policy": "compact"}
    admin.create_topics([NewTopic(settings.kafka.scores, 5, 1, topic_configs=compacted)])
    topics.apply(settings)
    (problem,) = topics.check(settings)
    assert "has 5 partitions, the sources have 2" in problem.message


def test_too_few_brokers_for_the_replication_names_the_setting(
    stack: Stack, topic_prefix: str
) -> None:
    settings = Settings(kafka=_kafka(stack.bootstrap, topic_prefix, replication=3))
    with pytest.raises(TopicError, match="LIVEVALUE_KAFKA__REPLICATION"):
        topics.apply(settings)


def test_no_broker_is_said_at_once_with_where_it_looked() -> None:
    address = f"127.0.0.1:{free(set())}"
    began = time.monotonic()
    with pytest.raises(LogUnavailable, match=f"no broker answers at {address}"):
        topics.check(Settings(kafka=KafkaSettings(bootstrap=address)))
    assert time.monotonic() - began < 2


def test_one_of_several_addresses_is_enough(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = f"127.0.0.1:{free(set())},{settings.kafka.bootstrap}"
    kafka = settings.kafka.model_copy(update={"bootstrap": several})
    # The driver draws one for each try; here sixteen times the one that is down.
    down, draw, drawn = 16, manager.random.choice, list[object]()

    def unlucky(brokers: list[Any]) -> Any:
        drawn.append(brokers)
        away = len(drawn) <= down
        return draw([b for b in brokers if (f":{b.port}" in settings.kafka.bootstrap) != away])

    monkeypatch.setattr(manager.random, "choice", unlucky)
    assert len(topics.check(Settings(kafka=kafka))) == 6
    assert len(drawn) > down


def test_something_that_is_no_broker_gives_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "_BOOTSTRAP_MS", 500)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(LogUnavailable, match=f"no broker answers at {address}"):
            topics.check(Settings(kafka=KafkaSettings(bootstrap=address)))


@pytest.mark.parametrize("address", ["broker", "broker:port"])
def test_what_is_no_address_names_the_setting(address: str) -> None:
    with pytest.raises(LogError, match="LIVEVALUE_KAFKA__BOOTSTRAP"):
        topics.check(Settings(kafka=KafkaSettings(bootstrap=address)))


def test_no_address_says_which_setting() -> None:
    with pytest.raises(LogError, match="LIVEVALUE_KAFKA__BOOTSTRAP"):
        topics.plan(Settings(kafka=KafkaSettings(bootstrap="")))


def test_an_answer_that_no_broker_foresaw_is_asked_again(settings: Settings) -> None:
    for error, kind in (
        (driver.UnknownError, LogUnavailable),
        (driver.InvalidTopicError, LogError),
    ):
        with pytest.raises(StreamsError) as caught, broker.translated(settings.kafka):
            raise error
        assert type(caught.value) is kind


def test_a_topic_deleted_between_two_questions_is_missing_and_not_forbidden(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics.apply(settings)
    real, gone = KafkaAdminClient.describe_configs, settings.kafka.dlq

    def deleted_before(self: KafkaAdminClient, *args: Any, **said: Any) -> Any:
        try:
            self.delete_topics([gone])
        except driver.UnknownTopicOrPartitionError:
            pass
        return real(self, *args, **said)

    monkeypatch.setattr(KafkaAdminClient, "describe_configs", deleted_before)
    with pytest.raises(TopicError, match=f"topic {gone} does not exist"):
        topics.logs(settings)
