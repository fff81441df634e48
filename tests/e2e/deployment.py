"""A deployment to be tested from outside: topics, workers as processes, events in, an audit.

The audit trusts nothing of the worker's: it reads the input topics, `scores`, the dead letters
and Redis itself, counts for each user what must have been folded, and compares.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import redis
from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from kafka.producer import KafkaProducer  # type: ignore[import-untyped]
from pydantic import SecretStr

from featurestore.digest import exact_fields
from featurestore.partitioner import partition
from featurestore.settings import StoreSettings
from featurestore.state import States
from streams import topics
from streams.pipeline import split
from streams.settings import KafkaSettings, Settings, WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
START_MS = 1_700_000_000_000


def deployment_settings(
    bootstrap: str,
    redis_url: str,
    prefix: str,
    *,
    partitions: int = 2,
    worker: Mapping[str, Any] | None = None,
    kafka: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings of a deployment of its own on shared servers."""
    return Settings(
        kafka=KafkaSettings(
            bootstrap=bootstrap,
            app=f"{prefix}app",
            browse=f"{prefix}browse",
            purchase=f"{prefix}purchase",
            interaction=f"{prefix}interaction",
            scores=f"{prefix}scores",
            dlq=f"{prefix}dlq",
            partitions=partitions,
            **{"session_timeout_s": 6.0, "heartbeat_s": 1.5, **(kafka or {})},
        ),
        store=StoreSettings(url=SecretStr(redis_url)),
        # The events are of 2023: by the wall clock every user would be long silent.
        worker=WorkerSettings(**{"clock": "log", **(worker or {})}),
    )


def environment(settings: Settings) -> dict[str, str]:
    """The settings as a process takes them: only what differs from the defaults."""
    said = {}
    for section, value in settings.model_dump(mode="json", exclude_unset=True).items():
        for name, one in value.items():
            text = one if isinstance(one, str) else json.dumps(one)
            said[f"LIVEVALUE_{section}__{name}".upper()] = text
    said["LIVEVALUE_STORE__URL"] = settings.store.url.get_secret_value()
    return said


class WorkerProcess:
    """One worker as a supervisor would run it, its log in a file."""

    def __init__(self, settings: Settings, log: Path, **more: str) -> None:
        self.log = log
        self._output: IO[bytes] = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streams.app"],
            cwd=ROOT,
            env={**os.environ, **environment(settings), **more},
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def loads(self, library: str) -> bool:
        """Whether the process has mapped a library of this name (Linux)."""
        return library in Path(f"/proc/{self._process.pid}/maps").read_text()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9, as a fault does."""
        self._process.kill()
        self._process.wait()

    def stop(self, patience_s: float = 30.0) -> int:
        """SIGTERM; -> exit code."""
        self._process.terminate()
        try:
            return self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def wait(self, patience_s: float) -> int:
        return self._process.wait(patience_s)

    def lines(self, what: str = "") -> list[dict[str, Any]]:
        """JSON lines of the log, those that say `what`."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                try:
                    said = json.loads(line)
                except ValueError:
                    continue  # cut off by a kill
                if not what or said.get("what") == what:
                    found.append(said)
        return found


@dataclass
class Deployment:
    """Topics, processes and helpers around one Settings."""

    settings: Settings
    folder: Path
    workers: dict[str, WorkerProcess] = field(default_factory=dict)
    sent: int = 0

    def __enter__(self) -> Deployment:
        self.redis = redis.Redis.from_url(self.settings.store.url.get_secret_value())
        self.redis.flushdb()
        topics.apply(self.settings)
        self._producer: KafkaProducer | None = None
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            if worker.exit_code is None:
                worker.kill()
        if self._producer is not None:
            self._producer.close(timeout=5)
        self.redis.close()

    @property
    def sources(self) -> tuple[str, ...]:
        return self.settings.kafka.sources

    def start(self, name: str = "w0", **more: str) -> WorkerProcess:
        worker = WorkerProcess(self.settings, self.folder / f"{name}.log", **more)
        self.workers[name] = worker
        return worker

    @property
    def producer(self) -> KafkaProducer:
        if self._producer is None:
            self._producer = KafkaProducer(
                **topics.connection(self.settings.kafka),
                acks="all",
                linger_ms=5,
                max_request_size=8 << 20,
            )
        return self._producer

    def send(self, source: int, event: Mapping[str, Any]) -> None:
        """One event, to the partition where its user lives."""
        user = str(event["user_id"])
        self.send_raw(source, user.encode(), json.dumps(event).encode())

    def send_raw(self, source: int, key: bytes | None, value: bytes | None) -> None:
        kafka = self.settings.kafka
        where = 0
        if key is not None:
            where = partition(key.decode(errors="replace"), kafka.partitions, kafka.partitioner)
        self.producer.send(self.sources[source], value=value, key=key, partition=where)
        self.sent += 1

    def flush(self) -> None:
        self.producer.flush(60)

    # ---- what there is

    def read(self, topic: str) -> list[Any]:
        """All committed records of a topic, partition by partition."""
        consumer = KafkaConsumer(
            **topics.connection(self.settings.kafka),
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=8 << 20,
        )
        try:
            tps = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
            consumer.assign(tps)
            ends = consumer.end_offsets(tps)
            records: list[Any] = []
            until = time.monotonic() + 60
            while any(consumer.position(tp) < ends[tp] for tp in tps):
                if time.monotonic() > until:
                    raise TimeoutError(f"{topic} is not read to its end within 60 s")
                for batch in consumer.poll(timeout_ms=500).values():
                    records += batch
            return sorted(records, key=lambda r: (r.partition, r.offset))
        finally:
            consumer.close()

    def ends(self) -> dict[tuple[int, int], int]:
        """Last stable offset by (partition, source)."""
        consumer = KafkaConsumer(
            **topics.connection(self.settings.kafka), isolation_level="read_committed"
        )
        try:
            count = self.settings.kafka.partitions
            tps = {
                (p, s): TopicPartition(t, p)
                for p in range(count)
                for s, t in enumerate(self.sources)
            }
            found = consumer.end_offsets(list(tps.values()))
            return {at: int(found[tp]) for at, tp in tps.items()}
        finally:
            consumer.close()

    def watermarks(self, name: str = "") -> dict[int, dict[str, Any]]:
        """Positions, seq and what is published of each partition of a store, from Redis.

        Without a name, of the store that serves the partition.
        """
        marks = {}
        for p in range(self.settings.kafka.partitions):
            active: Any = self.redis.get(f"lv:{{{p}}}:active")
            store = name or (active.decode() if active else self.settings.store.name)
            held: Any = self.redis.hgetall(f"lv:{store}:{{{p}}}:wm")
            if held and b"positions" in held:
                marks[p] = {k.decode(): v.decode(errors="replace") for k, v in held.items()}
        return marks

    def positions(self) -> dict[tuple[int, int], int]:
        found: dict[tuple[int, int], int] = {}
        for p, mark in self.watermarks().items():
            for s, at in enumerate(str(mark["positions"]).split(",")):
                found[p, s] = int(at)
        return found

    def settled(self) -> bool:
        """Everything in the log is folded and published."""
        ends, marks = self.ends(), self.watermarks()
        at = self.positions()
        if any(at.get(where, 0) < end for where, end in ends.items()):
            return False
        return all(m.get("published") == f"{m['seq']}:{m['writer']}" for m in marks.values())

    def settle(self, patience_s: float = 60.0) -> float:
        """Wait until settled; -> seconds it took."""
        began = time.monotonic()
        while time.monotonic() - began < patience_s:
            try:
                if self.settled():
                    return time.monotonic() - began
            except (redis.RedisError, OSError):
                pass  # a server is down at this moment
            time.sleep(0.2)
        raise AssertionError(
            f"not settled after {patience_s} s: ends {self.ends()}, watermarks {self.watermarks()}"
        )

    def audit(self) -> Audit:
        return audit(self)


@dataclass
class Audit:
    """What was found; all zero where the protocol holds."""

    events: int = 0  # distinct identities in the log
    users: int = 0
    lost: int = 0
    applied_twice: int = 0
    users_wrong: int = 0  # counts, money or identities differ
    outputs_missing: int = 0  # last document is not what Redis holds, or there is none
    outputs_twice: int = 0  # (user, revision) seen twice
    backwards: int = 0  # revision went down
    letters: int = 0
    examples: list[Any] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (
            self.lost
            or self.applied_twice
            or self.users_wrong
            or self.outputs_missing
            or self.outputs_twice
            or self.backwards
        )


@dataclass
class _Expected:
    kinds: list[int] = field(default_factory=lambda: [0, 0, 0])
    gross: int = 0
    id_lo: int = 0
    id_hi: int = 0


_KINDS = ("browse", "purchase", "interaction")


def _expect(deployment: Deployment) -> dict[str, _Expected]:
    """What must be folded of each user: the first record of each identity."""
    seen: set[tuple[str, str]] = set()
    expected: dict[str, _Expected] = {}
    for source, topic in enumerate(deployment.sources):
        for record in deployment.read(topic):
            event = json.loads(record.value)
            name = (topic, event["event_id"])
            if name in seen:
                continue
            seen.add(name)
            kind = _KINDS[source]
            digest = hashlib.blake2b(
                f"{topic}\0{kind}\0{event['event_id']}".encode(), digest_size=16
            ).digest()
            user = expected.setdefault(event["user_id"], _Expected())
            user.kinds[source] += 1
            user.id_hi = (user.id_hi + int.from_bytes(digest[:8], "little")) % (1 << 64)
            user.id_lo = (user.id_lo + int.from_bytes(digest[8:], "little")) % (1 << 64)
            if kind == "purchase":
                user.gross += round(float(event["amount"]) * 1_000_000)
    return expected


def audit(deployment: Deployment) -> Audit:
    """Compare what is in the log with what is in Redis and on `scores`."""
    found = Audit()
    expected = _expect(deployment)
    settings = deployment.settings
    found.users = len(expected)
    name, kafka = settings.store.name, settings.kafka
    last: dict[str, bytes | None] = {}
    revisions: Counter[tuple[str, int]] = Counter()
    highest: dict[str, int] = {}
    for record in deployment.read(kafka.scores):
        user = record.key.decode()
        last[user] = record.value
        if record.value is None:
            continue
        revision = json.loads(record.value)["revision"]
        revisions[user, revision] += 1
        if revision < highest.get(user, 0):
            found.backwards += 1
            found.examples.append(("backwards", user, highest[user], revision))
        highest[user] = max(highest.get(user, 0), revision)
    found.outputs_twice = sum(n - 1 for n in revisions.values())
    found.examples += [("twice", k) for k, n in revisions.items() if n > 1][:3]
    for user, wanted in expected.items():
        found.events += sum(wanted.kinds)
        p = partition(user, kafka.partitions, kafka.partitioner)
        row: Any = deployment.redis.get(f"lv:{name}:{{{p}}}:s:{user}")
        document: Any = deployment.redis.get(f"lv:{{{p}}}:v:{user}")
        states = States.decode([user], [split(row)[0] if row else None])
        exact = exact_fields(states)[0]
        have = [int(exact["browses"]), int(exact["purchases"]), int(exact["interactions"])]
        found.lost += sum(max(0, w - h) for w, h in zip(wanted.kinds, have, strict=True))
        found.applied_twice += sum(max(0, h - w) for w, h in zip(wanted.kinds, have, strict=True))
        said = (have, int(exact["gross_micro"]), int(exact["id_hi"]), int(exact["id_lo"]))
        if said != (wanted.kinds, wanted.gross, wanted.id_hi, wanted.id_lo):
            found.users_wrong += 1
            found.examples.append(("wrong", user, said, wanted))
        if document is None or last.get(user) != document:
            found.outputs_missing += 1
            found.examples.append(("differs", user, document, last.get(user)))
    found.letters = len(deployment.read(kafka.dlq))
    found.examples = found.examples[:10]
    return found


def some_events(
    count: int, users: int, seed: int = 1, *, first: int = 0
) -> Iterable[tuple[int, dict[str, Any]]]:
    """(source, event) in rough time order: browses, purchases and interactions of some users."""
    rng = random.Random(seed)
    actions = ("cart_add", "wishlist", "like", "share")
    for n in range(first, first + count):
        source = rng.choices((0, 1, 2), (60, 20, 20))[0]
        event: dict[str, Any] = {
            "event_id": f"e{n}",
            "user_id": f"u{rng.randrange(users)}",
            "event_time": START_MS + n * 250 + rng.randrange(-2000, 2000),
        }
        if source == 1:
            event["amount"] = f"{rng.randrange(100, 9999) / 100:.2f}"
        elif source == 2:
            event["action"] = rng.choice(actions)
        yield source, event


def send_all(deployment: Deployment, events: Sequence[tuple[int, dict[str, Any]]]) -> None:
    for source, event in events:
        deployment.send(source, event)
    deployment.flush()
