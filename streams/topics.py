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
not for an event loop. `connection` serves every kafka-python client of the project.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import kafka.errors as driver  # type: ignore[import-untyped]
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, NewTopic  # type: ignore[import-untyped]

from featurestore.secrets import refused
from featurestore.wording import counted
from streams.connection import SECTION, security
from streams.errors import LogAuthError, LogError, LogUnavailable, StreamsError, TopicError
from streams.knock import Hung, Refused, knock
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
_BOOTSTRAP_MS = 10_000


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


def forbidden(kafka: KafkaSettings, operation: str, what: str) -> LogAuthError:
    """The broker's permissions keep us from `operation`."""
    who = kafka.username if kafka.security.startswith("SASL") else "this client"
    return LogAuthError(
        f"{who} may not {operation} {what} at {kafka.bootstrap}: give "
        "it the permissions of its role in docs/acl/kafka.sh, or another account in "
        f"{SECTION}__USERNAME"
    )


def refuse_hidden(kafka: KafkaSettings, name: str) -> None:
    """LogAuthError where a topic seems to be missing because we may not see it."""
    with _admin(kafka) as admin:
        _described(admin, kafka, [name])


def topic_ids(settings: Settings) -> dict[str, str]:
    """UUID of each source topic: a topic that was recreated under its name has another one."""
    with _admin(settings.kafka) as admin:
        found = _found(admin, settings.kafka)
    for name in settings.kafka.sources:
        if name not in found:
            raise TopicError(_missing(name))
    return {name: found[name].id for name in settings.kafka.sources}


def log_id(settings: Settings, ids: dict[str, str]) -> str:
    """Identity of the logs, from the topics' UUIDs in the order of the sources."""
    return ",".join(ids[name] for name in settings.kafka.sources)


@dataclass(frozen=True, slots=True)
class SourceFound:
    """A source topic as the broker has it now.

    epochs: of each partition's leadership; raised with each change of leader, and only then can a
    log lose what it had acknowledged.
    """

    id: str
    epochs: tuple[int, ...]

    @property
    def partitions(self) -> int:
        """Their number."""
        return len(self.epochs)


def sources_found(settings: Settings) -> dict[str, SourceFound]:
    """Each source topic that the broker has."""
    with _admin(settings.kafka) as admin:
        found = _found(admin, settings.kafka)
    return {
        name: SourceFound(found[name].id, found[name].epochs)
        for name in settings.kafka.sources
        if name in found
    }


def partition_counts(kafka: KafkaSettings) -> dict[str, int]:
    """Partitions of each source as it is on the broker; TopicError where one is missing."""
    with _admin(kafka) as admin:
        found = _found(admin, kafka)
    for name in kafka.sources:
        if name not in found:
            raise TopicError(_missing(name))
    return {name: found[name].partitions for name in kafka.sources}


def connection(kafka: KafkaSettings) -> dict[str, Any]:
    """Arguments of a kafka-python client: address, TLS, SASL.

    >>> connection(KafkaSettings(bootstrap="127.0.0.1:9092"))["bootstrap_servers"]
    ['127.0.0.1:9092']
    """
    if not kafka.bootstrap:
        raise LogError(
            "no broker is configured: set LIVEVALUE_KAFKA__BOOTSTRAP to host:port, "
            "or start one with `livevalue up`"
        )
    options: dict[str, Any] = {
        "bootstrap_servers": [part.strip() for part in kafka.bootstrap.split(",")],
        "bootstrap_timeout_ms": _BOOTSTRAP_MS,
        "client_id": kafka.app,
        **security(kafka),
    }
    return options


@contextmanager
def translated(kafka: KafkaSettings) -> Iterator[None]:
    """kafka-python's errors, said in ours, with what the operator does next."""
    overheard = _Overheard()
    try:
        with overheard:
            yield
    except StreamsError:
        raise
    except (
        driver.SaslAuthenticationFailedError,
        driver.UnsupportedSaslMechanismError,
        driver.IllegalSaslStateError,
    ) as error:
        raise _refused(kafka, type(error).__name__) from error
    except (
        driver.TopicAuthorizationFailedError,
        driver.ClusterAuthorizationFailedError,
        driver.GroupAuthorizationFailedError,
        driver.TransactionalIdAuthorizationFailedError,
    ) as error:
        what = type(error).__name__.removesuffix("AuthorizationFailedError").lower()
        raise forbidden(kafka, "do this with", f"the {what}") from error
    except driver.UnknownTopicOrPartitionError as error:
        raise TopicError(f"a topic is missing: run `livevalue topics --apply` ({error})") from error
    except (driver.KafkaTimeoutError, driver.KafkaConnectionError) as error:
        if overheard.refusal:
            raise _refused(kafka, overheard.refusal) from error
        if kafka.security.startswith("SASL") and overheard.closed > 1:
            raise _refused(kafka, "it closes the connection at the login") from error
        raise _silent(kafka, "no answer") from error
    except driver.KafkaError as error:
        kind = LogUnavailable if error.retriable else LogError
        raise kind(f"the broker at {kafka.bootstrap} answers: {error}") from error
    except OSError as error:
        raise LogError(
            f"cannot connect to {kafka.bootstrap} ({error}): check LIVEVALUE_KAFKA__BOOTSTRAP "
            "and __CA_FILE"
        ) from error


def _silent(kafka: KafkaSettings, why: str) -> LogUnavailable:
    return LogUnavailable(
        f"no broker answers at {kafka.bootstrap} with {kafka.security} ({why}): start one "
        "(`livevalue up`), or check LIVEVALUE_KAFKA__BOOTSTRAP and __SECURITY"
    )


def _refused(kafka: KafkaSettings, how: str) -> LogAuthError:
    return LogAuthError(
        f"the broker at {kafka.bootstrap} refuses the login of {kafka.username!r} ({how}): check "
        "LIVEVALUE_KAFKA__USERNAME, __PASSWORD and __SASL_MECHANISM"
    )


class _Overheard(logging.Handler):
    """Notes a refused login while the driver connects.

    kafka-python 3.0.12 logs the broker's refusal, tries again until its time is up, and then
    raises a time-out that does not tell a wrong password from a broker that is down. Where the
    broker's answer and its closing of the connection come together it hears only the latter.
    """

    _KINDS = ("SaslAuthenticationFailedError", "UnsupportedSaslMechanismError")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.refusal = ""
        self.closed = 0  # connections that the broker closed
        self._logger = logging.getLogger("kafka.net")
        self._before = (self._logger.level, self._logger.propagate)

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        self.refusal = next((kind for kind in self._KINDS if kind in said), self.refusal)
        self.closed += "failed: KafkaConnectionError: socket disconnected" in said

    def __enter__(self) -> None:
        # A worker mutes the driver (streams.logs): heard it must be all the same, not printed.
        self._before = (self._logger.level, self._logger.propagate)
        if not self._logger.isEnabledFor(logging.WARNING):
            self._logger.setLevel(logging.WARNING)
            self._logger.propagate = False
        self._logger.addHandler(self)

    def __exit__(self, *error: object) -> None:
        self._logger.removeHandler(self)
        level, self._logger.propagate = self._before
        self._logger.setLevel(level)


@dataclass(frozen=True, slots=True)
class _Topic:
    """What the broker says of a topic."""

    id: str
    partitions: int
    replication: int
    policies: frozenset[str]
    epochs: tuple[int, ...]  # of leadership, by partition
    allowed: frozenset[str]  # what we may do with it; empty where the broker does not say


def reach(kafka: KafkaSettings) -> None:
    """Raise at once where nothing listens, or nothing that speaks Kafka with our security.

    kafka-python tries for its whole bootstrap time, ten seconds, what is plain after a moment,
    and then cannot say whether the certificate or the network is at fault.
    """
    options = connection(kafka)
    problem: LogError | LogUnavailable | None = None
    for address in options["bootstrap_servers"]:
        host, _, port = address.rpartition(":")
        try:
            number = int(port)
        except ValueError:
            raise LogError(
                f"{address!r} is no address: write host:port[,host:port] into "
                "LIVEVALUE_KAFKA__BOOTSTRAP"
            ) from None
        try:
            knock(host.strip("[]"), number, options)
        except Refused as error:
            raise _refused(kafka, str(error)) from None
        except ssl.SSLError as error:
            said = refused(error, address, SECTION, f"{SECTION}__BOOTSTRAP")
            problem = LogError(
                said
                or f"{address} and we do not agree on TLS ({error.reason}): correct "
                f"{SECTION}__SECURITY (it is {kafka.security})"
            )
        except OSError as error:
            said = error.strerror or str(error) or type(error).__name__
            if isinstance(error, Hung) and kafka.security == "SSL":
                # It may hang up before its alert is read.
                said += f"; it may want a certificate: {SECTION}__CERT_FILE"
            problem = _silent(kafka, said)
        else:
            return
    if problem is not None:
        raise problem


@contextmanager
def _admin(kafka: KafkaSettings) -> Iterator[KafkaAdminClient]:
    reach(kafka)
    with translated(kafka):
        admin = KafkaAdminClient(**connection(kafka))
        try:
            yield admin
        finally:
            admin.close()


def _found(admin: KafkaAdminClient, kafka: KafkaSettings) -> dict[str, _Topic]:
    """Those of our topics that exist. LogAuthError where we may not even know whether one does."""
    answers = _described(admin, kafka, [topic.name for topic in wanted(kafka)])
    described = {topic["name"]: topic for topic in answers if not topic["error_code"]}
    if not described:
        return {}
    resources = [ConfigResource("TOPIC", name) for name in described]
    configs = admin.describe_configs(resources, config_filter="all")["topic"]
    for name in described:
        # The driver (kafka-python 3.0.12) passes a refusal over: nothing is said of the topic.
        if "cleanup.policy" not in configs.get(name, {}):
            raise forbidden(kafka, "DESCRIBE_CONFIGS", f"topic {name}")
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
        must = topic.role in ("scores", "published") and "compact" not in there.policies
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
        Problem(
            name,
            f"{name} is compacted, so events are missing from it: set its cleanup.policy to "
            "delete, or name another topic as source",
        )
        for name in kafka.sources
        if name in found and "compact" in found[name].policies
    ]
    for name in (kafka.scores, kafka.published):
        if name not in found:
            continue
        if counts and found[name].partitions not in counts.values():
            problems.append(
                Problem(
                    name,
                    f"{name} has {counted(found[name].partitions, 'partition')}, the sources have "
                    f"{max(counts.values())}: name a new topic in LIVEVALUE_KAFKA__SCORES",
                )
            )
        if "compact" not in found[name].policies:
            problems.append(
                Problem(
                    name,
                    f"{name} is not compacted, so it would lose users' values or grow for ever: "
                    "run `livevalue topics --apply`",
                )
            )
    return problems


def _missing(name: str) -> str:
    return f"topic {name} does not exist: run `livevalue topics --apply`"
