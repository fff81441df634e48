"""A deployment to be tested from outside: topics, workers as processes, events in, an audit.

The audit is that of `make chaos` (benchmarks/chaos/auditor.py).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from kafka.producer import KafkaProducer  # type: ignore[import-untyped]
from pydantic import SecretStr

from benchmarks.chaos.auditor import audit, read
from benchmarks.chaos.found import Audit
from featurestore.partitioner import partition
from featurestore.settings import StoreSettings
from streams import broker, topics
from streams.settings import KafkaSettings, Settings, WorkerSettings
from tests.forks import WORKER, Fork, run

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
    """One worker as a supervisor would run it, its log in a file.

    fork: started within milliseconds (tests.forks); else from nothing, by another version's code
    where `root` is the folder of one.
    """

    def __init__(
        self, settings: Settings, log: Path, root: Path = ROOT, *, fork: bool = False, **more: str
    ) -> None:
        self.log = log
        self._logged = log.stat().st_size if log.exists() else 0  # by those before us
        env = {**os.environ, **environment(settings), **more}
        self._process: Fork | subprocess.Popen[bytes]
        if fork:
            log.touch()  # there before the fork has come to open it
            self._process = Fork(WORKER, [], cwd=root, env=env, stdout=log)
            return
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "streams.app"],
                cwd=root,  # of the code that runs: another version's, in a rolling restart
                env=env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

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
        return self._said(0, what)

    def serves(self) -> list[int]:
        """Partitions that this process was given last and has claimed, by what it says itself."""
        mine: set[int] = set()
        given: set[int] = set()
        for line in self._said(self._logged):
            if line.get("what") == "assigned":
                given, mine = set(line["partitions"]), set()
            elif line.get("what") == "partition claimed":
                mine.add(line["partition"])
        return sorted(given & mine)

    def _said(self, since: int, what: str = "") -> list[dict[str, Any]]:
        with self.log.open("rb") as log:
            log.seek(since)
            text = log.read().decode(errors="replace")
        found = []
        for line in text.splitlines():
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
    """Topics, processes and helpers around one Settings.

    forks: whether workers and commands are forked (tests.forks), as suits tests, or start from
    nothing, as suits what measures.
    """

    settings: Settings
    folder: Path
    forks: bool = True
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
        log = self.folder / f"{name}.log"
        worker = WorkerProcess(self.settings, log, ROOT, fork=self.forks, **more)
        self.workers[name] = worker
        return worker

    def command(self, *words: str, timeout: float = 100.0) -> subprocess.CompletedProcess[str]:
        """`livevalue WORDS` to its end, run in our folder with our settings."""
        env = {**os.environ, **environment(self.settings), "PYTHONPATH": str(ROOT)}
        if self.forks:
            return run(words, cwd=self.folder, env=env, timeout=timeout)
        return subprocess.run(
            [sys.executable, "-m", "livevalue", *words],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    @property
    def producer(self) -> KafkaProducer:
        if self._producer is None:
            self._producer = KafkaProducer(
                **broker.connection(self.settings.kafka),
                acks="all",
                linger_ms=5,
                max_request_size=16 << 20,
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
        return read(self.settings.kafka, topic)

    def ends(self) -> dict[tuple[int, int], int]:
        """Last stable offset by (partition, source)."""
        with self._asking() as consumer:
            return self._ends(consumer)

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        consumer = KafkaConsumer(
            **broker.connection(self.settings.kafka), isolation_level="read_committed"
        )
        try:
            yield consumer
        finally:
            consumer.close()

    def _ends(self, consumer: Any) -> dict[tuple[int, int], int]:
        tps = {
            (p, s): TopicPartition(t, p)
            for p in range(self.settings.kafka.partitions)
            for s, t in enumerate(self.sources)
        }
        found = consumer.end_offsets(list(tps.values()))
        return {at: int(found[tp]) for at, tp in tps.items()}

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
        with self._asking() as consumer:
            return self._settled(consumer)

    def _settled(self, consumer: Any) -> bool:
        ends, marks = self._ends(consumer), self.watermarks()
        at = self.positions()
        if any(at.get(where, 0) < end for where, end in ends.items()):
            return False
        return all(m.get("published") == f"{m['seq']}:{m['writer']}" for m in marks.values())

    def settle(self, patience_s: float = 60.0) -> float:
        """Wait until settled; -> seconds it took."""
        began = time.monotonic()
        while time.monotonic() - began < patience_s:
            try:
                # One client for all looks: to start and end one takes longer than the pause.
                with self._asking() as consumer:
                    while time.monotonic() - began < patience_s:
                        if self._settled(consumer):
                            return time.monotonic() - began
                        time.sleep(0.1)
            except (redis.RedisError, OSError):
                time.sleep(0.2)  # a server is down at this moment
        raise AssertionError(
            f"not settled after {patience_s} s: ends {self.ends()}, watermarks {self.watermarks()}"
        )

    def audit(self, undone_to: Sequence[Mapping[int, int]] | None = None) -> Audit:
        """Compare what is in the log with what is in Redis and on the outputs.

        undone_to: of each roll-back of Redis, by partition, a commit that was not undone; None: not
        known.
        """
        return audit(self.settings, self.redis, undone_to)


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
