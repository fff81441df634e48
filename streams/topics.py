"""The topics: what they should be, what they are, and making the one into the other.

| topic | partitions | kept | key |
|---|---|---|---|
| each source (three, or one mixed) | n | for good: replay folds it from the beginning | user |
| scores | n | compacted: a user's last document | user |
| scores.published | n | compacted: a partition's last published commit | partition |
| events.dlq | 1 | for good | that of the bad record |

A user's partition number is the same in every one of the first two, so n must be equal, and it
stays: more partitions would move users away from their states. `apply` makes what is missing
and compacts what must be compacted; whatever else exists is left as its owner set it.

All of it through kafka-python's admin client, blocking: for commands and the start of a worker,
not for an event loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import kafka.errors as driver  # type: ignore[import-untyped]
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, NewTopic  # type: ignore[import-untyped]

from featurestore.wording import counted
from streams import compaction
from streams.broker import connection, forbidden, reach, translated
from streams.errors import TopicError
from streams.settings import KafkaSettings, Settings

Role = Literal["source", "scores", "published", "dlq"]
Action = Literal["create", "compact", "keep"]

# No record of a source is lost to age: timestamps of a history played in are years old, and the
# default of 7 days would delete it at once.
_FOREVER = {"cleanup.policy": "delete", "retention.ms": "-1"}
_COMPACTED = {
    "cleanup.policy": "compact",
    # Only closed segments are compacted; the default closes one after 7 days or 1 GiB.
    "segment.ms": str(3_600_000),
    "segment.bytes": str(64 << 20),
}
# A dead letter holds the whole bad record and headers about it.
_DLQ_ROOM = 64 << 10
# What a worker does with its topics.
_NEEDED: Mapping[Role, tuple[str, ...]] = {
    "source": ("READ",),
    "scores": ("READ", "WRITE"),
    "published": ("READ", "WRITE"),
    "dlq": ("WRITE",),
}


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """One topic, and what `apply` does or did to it."""

    name: str
    role: Role
    partitions: int
    replication: int
    config: Mapping[str, str] = field(default_factory=dict)
    action: Action = "create"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about a topic with which a worker cannot work; the message says what to do."""

    topic: str
    message: str


def wanted(kafka: KafkaSettings) -> list[TopicPlan]:
    """The topics as they are made on an empty broker; asks nobody.

    >>> [(t.name, t.partitions) for t in wanted(KafkaSettings(mixed="events", partitions=3))]
    [('events', 3), ('scores', 3), ('scores.published', 3), ('events.dlq', 1)]
    """
    n, replicas = kafka.partitions, kafka.replication
    safe = {"min.insync.replicas": str(replicas - 1)} if replicas > 2 else {}
    # Above our own limit, so that a record that is too large reaches the dead letters with its
    # reason instead of being refused to its producer.
    source = _FOREVER | safe | {"max.message.bytes": str(4 * kafka.max_record_bytes)}
    dlq = _FOREVER | safe | {"max.message.bytes": str(4 * kafka.max_record_bytes + _DLQ_ROOM)}
    return [
        *(TopicPlan(name, "source", n, replicas, source) for name in kafka.sources),
        TopicPlan(kafka.scores, "scores", n, replicas, _COMPACTED | safe),
        TopicPlan(kafka.published, "published", n, replicas, _COMPACTED | safe),
        TopicPlan(kafka.dlq, "dlq", 1, replicas, dlq),
    ]


def plan(settings: Settings) -> list[TopicPlan]:
    """What `apply` would do; changes nothing."""
    with _admin(settings.kafka) as admin:
        return _planned(settings.kafka, _found(admin, settings.kafka))


def apply(settings: Settings) -> list[TopicPlan]:
    """Make the missing topics, compact the outputs; what was done. A second call does nothing."""
    kafka = settings.kafka
    with _admin(kafka) as admin:
        steps = _planned(kafka, _found(admin, kafka))
        new = [
            NewTopic(step.name, step.partitions, step.replication, topic_configs=dict(step.config))
            for step in steps
            if step.action == "create"
        ]
        for topic in new:
            try:
                admin.create_topics([topic], wait_for_metadata=True)
            except driver.TopicAlreadyExistsError:
                pass  # another worker was faster
            except (driver.InvalidReplicationFactorError, driver.PolicyViolationError) as error:
                raise TopicError(
                    f"the broker refuses topic {topic.name} with replication "
                    f"{kafka.replication} ({type(error).__name__}): "
                    "set LIVEVALUE_KAFKA__REPLICATION to at most the number of brokers"
                ) from error
        for step in steps:
            if step.action == "compact":
                change = {"cleanup.policy": "compact"}
                said = admin.alter_configs([ConfigResource("TOPIC", step.name, change)])
                # The driver (kafka-python 3.0.12) raises no refusal, it returns its text.
                if driver.TopicAuthorizationFailedError.__name__ in str(said):
                    raise forbidden(kafka, "ALTER_CONFIGS", f"topic {step.name}")
    return steps


def check(settings: Settings) -> list[Problem]:
    """Everything about the topics that would keep a worker from working; empty = well."""
    with _admin(settings.kafka) as admin:
        return _problems(settings.kafka, _found(admin, settings.kafka))


def require(settings: Settings) -> None:
    """Raise TopicError with the first problem that `check` finds.

    LogAuthError where a worker may not do what it must.
    """
    kafka = settings.kafka
    with _admin(kafka) as admin:
        found = _found(admin, kafka)
        problems = _problems(kafka, found)
        if problems:
            raise TopicError(problems[0].message)
        _permit(admin, kafka, found)


def _permit(admin: KafkaAdminClient, kafka: KafkaSettings, found: Mapping[str, _Topic]) -> None:
    """Raise LogAuthError with the first permission that a worker lacks.

    Better at the start than in the middle: Faust asks a group that refuses it again for ever, and
    a topic that may not be written shows only when there is something to publish.
    """
    for topic in wanted(kafka):
        allowed = found[topic.name].allowed
        for operation in _NEEDED[topic.role] if allowed else ():
            if operation not in allowed:
                raise forbidden(kafka, operation, f"topic {topic.name}")
    name = f"{kafka.app}-0"
    try:
        admin.list_group_offsets([kafka.app])
        admin.describe_transactions([name])
    except driver.GroupAuthorizationFailedError:
        raise forbidden(kafka, "READ", f"group {kafka.app}") from None
    except driver.TransactionalIdAuthorizationFailedError:
        raise forbidden(kafka, "WRITE", f"transactional id {name}") from None
    except driver.KafkaError:
        pass  # there is none yet, or its coordinator is still being made


def refuse_hidden(kafka: KafkaSettings, name: str) -> None:
    """LogAuthError where a topic seems to be missing because we may not see it."""
    with _admin(kafka) as admin:
        _described(admin, kafka, [name])


def topic_ids(settings: Settings) -> dict[str, str]:
    """UUID of each source topic: a topic that was recreated under its name has another one."""
    return {name: found.id for name, found in sources_there(settings).items()}


def log_id(settings: Settings, ids: dict[str, str]) -> str:
    """Identity of the logs, from the topics' UUIDs in the order of the sources."""
    return ",".join(ids[name] for name in settings.kafka.sources)


@dataclass(frozen=True, slots=True)
class TopicFound:
    """A topic as the broker has it now.

    epochs: of each partition's leadership; raised with each change of leader, and only then can a
    log lose what it had acknowledged.
    compacted: whether its cleanup.policy says so, with `delete` or without. expires: whether it
    says `delete`.
    """

    id: str
    epochs: tuple[int, ...]
    compacted: bool = False
    expires: bool = False

    @property
    def partitions(self) -> int:
        """Their number."""
        return len(self.epochs)


def all_found(settings: Settings) -> dict[str, TopicFound]:
    """Each of our topics that the broker has, sources and outputs."""
    return _as_found(settings.kafka, [topic.name for topic in wanted(settings.kafka)])


def sources_found(settings: Settings) -> dict[str, TopicFound]:
    """Each source topic that the broker has."""
    return _as_found(settings.kafka, settings.kafka.sources)


def _as_found(kafka: KafkaSettings, names: Sequence[str]) -> dict[str, TopicFound]:
    with _admin(kafka) as admin:
        return _told(_found(admin, kafka, names))


def _told(found: Mapping[str, _Topic]) -> dict[str, TopicFound]:
    return {
        name: TopicFound(
            topic.id, topic.epochs, "compact" in topic.policies, "delete" in topic.policies
        )
        for name, topic in found.items()
    }


def sources_there(settings: Settings) -> dict[str, TopicFound]:
    """Each source topic; TopicError where one is missing."""
    return _whole(settings.kafka.sources, sources_found(settings))


def _whole(names: Sequence[str], found: dict[str, TopicFound]) -> dict[str, TopicFound]:
    for name in names:
        if name not in found:
            raise TopicError(_missing(name))
    return found


def compacted(settings: Settings) -> tuple[str, ...]:
    """Source topics that the broker compacts."""
    return tuple(name for name, found in sources_found(settings).items() if found.compacted)


@dataclass(frozen=True, slots=True)
class Logs:
    """The logs as the broker has them now."""

    id: str  # UUIDs of the sources
    scores_id: str  # UUID of the topic that values go to
    published_id: str  # and of the one that says how far
    epochs: tuple[tuple[int, ...], ...]  # of leadership, by source and partition
    compacted: frozenset[str]  # topics that may lack records for compaction, as the settings accept
    asked_s: float  # when we asked, by the monotonic clock


def logs(settings: Settings) -> Logs:
    """The logs as they are now; TopicError where one of our topics is missing."""
    kafka, asked_s = settings.kafka, time.monotonic()
    there = _whole([topic.name for topic in wanted(kafka)], all_found(settings))
    found = [there[name] for name in kafka.sources]
    accepts = kafka.compacted == "accept"
    return Logs(
        ",".join(x.id for x in found),
        there[kafka.scores].id,
        there[kafka.published].id,
        tuple(x.epochs for x in found),
        frozenset(name for name in kafka.sources if there[name].compacted and accepts),
        asked_s,
    )


def partition_counts(kafka: KafkaSettings) -> dict[str, int]:
    """Partitions of each source as it is on the broker; TopicError where one is missing."""
    with _admin(kafka) as admin:
        found = _found(admin, kafka)
    for name in kafka.sources:
        if name not in found:
            raise TopicError(_missing(name))
    return {name: found[name].partitions for name in kafka.sources}


@dataclass(frozen=True, slots=True)
class _Topic:
    """What the broker says of a topic."""

    id: str
    partitions: int
    replication: int
    policies: frozenset[str]
    epochs: tuple[int, ...]  # of leadership, by partition
    allowed: frozenset[str]  # what we may do with it; empty where the broker does not say


@contextmanager
def _admin(kafka: KafkaSettings) -> Iterator[KafkaAdminClient]:
    reach(kafka)
    with translated(kafka):
        admin = KafkaAdminClient(**connection(kafka))
        try:
            yield admin
        finally:
            admin.close()


def _found(
    admin: KafkaAdminClient, kafka: KafkaSettings, names: Sequence[str] = ()
) -> dict[str, _Topic]:
    """Those of our topics (or of `names`) that exist.

    LogAuthError where we may not even know whether one does.
    """
    answers = _described(admin, kafka, names or [topic.name for topic in wanted(kafka)])
    described = {topic["name"]: topic for topic in answers if not topic["error_code"]}
    if not described:
        return {}
    resources = [ConfigResource("TOPIC", name) for name in described]
    configs = admin.describe_configs(resources, config_filter="all")["topic"]
    # The driver (kafka-python 3.0.12) passes a refusal over: nothing is said of the topic. Neither
    # is of one that was deleted meanwhile.
    silent = [name for name in described if "cleanup.policy" not in configs.get(name, {})]
    for topic in _described(admin, kafka, silent) if silent else ():
        if not topic["error_code"]:
            raise forbidden(kafka, "DESCRIBE_CONFIGS", f"topic {topic['name']}")
        del described[topic["name"]]
    return {
        name: _Topic(
            str(topic["topic_id"]),
            len(topic["partitions"]),
            min(len(part["replica_nodes"]) for part in topic["partitions"]),
            frozenset(configs[name]["cleanup.policy"]["value"].split(",")),
            _epochs(topic["partitions"]),
            frozenset(topic.get("authorized_operations") or ()),
        )
        for name, topic in described.items()
    }


def _described(
    admin: KafkaAdminClient, kafka: KafkaSettings, names: Sequence[str]
) -> list[dict[str, Any]]:
    """What the broker says of topics. LogAuthError where it does not let us know of one."""
    answers: list[dict[str, Any]] = admin.describe_topics(list(names))
    for topic in answers:
        if topic["error_code"] == driver.TopicAuthorizationFailedError.errno:
            raise forbidden(kafka, "DESCRIBE", f"topic {topic['name']}")
    return answers


def _epochs(partitions: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    by_number = sorted(partitions, key=lambda one: one["partition_index"])
    return tuple(int(one.get("leader_epoch", -1)) for one in by_number)


def _planned(kafka: KafkaSettings, found: Mapping[str, _Topic]) -> list[TopicPlan]:
    steps = []
    for topic in wanted(kafka):
        there = found.get(topic.name)
        if there is None:
            steps.append(topic)
            continue
        must = topic.role in ("scores", "published") and there.policies != {"compact"}
        steps.append(
            TopicPlan(
                topic.name,
                topic.role,
                there.partitions,
                there.replication,
                {"cleanup.policy": ",".join(sorted(there.policies))},
                "compact" if must else "keep",
            )
        )
    return steps


def _problems(kafka: KafkaSettings, found: Mapping[str, _Topic]) -> list[Problem]:
    problems = [Problem(t.name, _missing(t.name)) for t in wanted(kafka) if t.name not in found]
    counts = {name: found[name].partitions for name in kafka.sources if name in found}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} has {count}" for name, count in counts.items())
        problems.append(
            Problem(
                kafka.sources[0],
                f"the sources differ in their number of partitions ({told}): a user must have "
                "the same partition in each; produce into new topics with equal numbers",
            )
        )
    elif counts and set(counts.values()) != {kafka.partitions}:
        count = next(iter(counts.values()))
        problems.append(
            Problem(
                kafka.sources[0],
                f"the sources have {counted(count, 'partition')}, the settings say "
                f"{kafka.partitions}: set LIVEVALUE_KAFKA__PARTITIONS={count}",
            )
        )
    problems += [
        Problem(name, compaction.refusal(name))
        for name in kafka.sources
        if kafka.compacted == "refuse" and name in found and "compact" in found[name].policies
    ]
    return problems + outputs_amiss(kafka, _told(found))


def outputs_amiss(kafka: KafkaSettings, there: Mapping[str, TopicFound]) -> list[Problem]:
    """What of the outputs keeps values and dead letters from being published, or loses some."""
    problems = []
    counts = [there[name].partitions for name in kafka.sources if name in there]
    for name in (kafka.scores, kafka.published):
        if name not in there:
            continue
        if counts and there[name].partitions not in counts:
            then = "name a new topic in LIVEVALUE_KAFKA__SCORES"
            if name == kafka.published:
                then = "delete it and run `livevalue topics --apply`; all is published again"
            problems.append(
                Problem(
                    name,
                    f"{name} has {counted(there[name].partitions, 'partition')}, the sources have "
                    f"{max(counts)}: {then}",
                )
            )
        if not there[name].compacted or there[name].expires:
            by_age = "is compacted, and deleted by age as well"
            what = by_age if there[name].compacted else "is not compacted"
            problems.append(
                Problem(
                    name,
                    f"{name} {what}, so it would lose users' values or grow for ever: run "
                    "`livevalue topics --apply`",
                )
            )
    if kafka.dlq in there and there[kafka.dlq].compacted:
        problems.append(
            Problem(
                kafka.dlq,
                f"{kafka.dlq} is compacted, so it would lose dead letters, and the broker takes "
                "none without a key there: set cleanup.policy to delete, retention.ms to -1",
            )
        )
    return problems


def _missing(name: str) -> str:
    return f"topic {name} does not exist: run `livevalue topics --apply`"
