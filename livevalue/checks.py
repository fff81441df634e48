"""What `livevalue doctor` looks at, in the order in which one thing needs the other.

A check never raises for what it finds: it says "ok", "warning" (works, but look) or "failed",
and in one line what is well or what to do. What a failed check keeps from being seen is left out.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]

from featurestore.backends.link import ErrorReply, Links
from featurestore.backends.redis import RedisStore
from featurestore.backends.replies import failure
from featurestore.errors import FeatureStoreError
from featurestore.partitioner import NAMES, partition
from featurestore.store import Meta
from featurestore.wording import counted
from livevalue import __version__, running
from livevalue.caveats import caveats
from streams import broker, crashpoints, topics
from streams.errors import StreamsError
from streams.settings import KafkaSettings, Settings

Status = Literal["ok", "warning", "failed"]

_OLDEST_REDIS = 7
_SAMPLE = 5  # records of each partition
_READ_S = 5.0
_DRIFT_S = 2.0
_PACKAGES = ("faust-streaming", "aiokafka", "kafka-python", "numpy", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    status: Status
    message: str


def run_all(settings: Settings | None = None) -> Iterator[Check]:
    """One after the other, as they are found."""
    yield _versions()
    if settings is None:
        settings, origins = running.read()
        told = ", ".join(sorted(set(origins.values()))) or "defaults only"
        yield Check("settings", "ok", f"read from {told}")
    if point := os.environ.get(crashpoints.VARIABLE):
        yield Check(
            "crash point",
            "warning",
            f"{crashpoints.VARIABLE}={point} lets a worker started from here die: unset it",
        )
    yield from _log(settings)
    yield from redis(settings)


def _versions() -> Check:
    said = [f"livevalue {__version__}", f"python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            said.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            return Check("versions", "failed", f"{name} is not installed: pip install {name}")
    return Check("versions", "ok", ", ".join(said))


def _log(settings: Settings) -> Iterator[Check]:
    kafka = settings.kafka
    try:
        problems = topics.check(settings)
    except StreamsError as error:
        yield Check("broker", "failed", str(error))
        return
    yield Check("broker", "ok", f"{kafka.bootstrap} answers ({kafka.security})")
    for problem in problems:
        yield Check("topics", "failed", problem.message)
    if not problems:
        sources = ", ".join(kafka.sources)
        yield Check("topics", "ok", f"{sources} with {counted(kafka.partitions, 'partition')} each")
        for said in caveats(settings):
            yield Check("topics", "warning", said)
        yield from _records(kafka)


def _records(kafka: KafkaSettings) -> Iterator[Check]:
    """The partitioner and the clock, by the last records of each source."""
    try:
        with broker.translated(kafka):
            sample = _sample(kafka)
    except StreamsError as error:
        yield Check("partitioner", "failed", str(error))
        return
    if not sample:
        yield Check("partitioner", "ok", f"{kafka.partitioner}; no record yet to check it by")
        return
    shares = {
        name: sum(partition(key, kafka.partitions, name) == p for key, p, _ in sample)
        for name in NAMES
    }
    right, last = shares[kafka.partitioner], counted(len(sample), "record")
    best = max(NAMES, key=shares.__getitem__)
    if right == len(sample):
        yield Check("partitioner", "ok", f"{kafka.partitioner} fits the last {last}")
    elif shares[best] > right:
        yield Check(
            "partitioner",
            "failed",
            f"{kafka.partitioner} fits {right} of the last {last}, {best} "
            f"{shares[best]}: set LIVEVALUE_KAFKA__PARTITIONER={best}",
        )
    else:
        lie = "lies" if len(sample) - right == 1 else "lie"
        yield Check(
            "partitioner",
            "warning",
            f"{len(sample) - right} of the last {last} {lie} in another partition than their key "
            "says: they become dead letters; look at their producer",
        )
    ahead_s = max(stamp for _, _, stamp in sample) / 1000 - time.time()
    if ahead_s > _DRIFT_S:
        yield Check(
            "clock",
            "warning",
            f"the newest record is stamped {ahead_s:.0f} s ahead of this machine's clock: set "
            "both clocks by NTP",
        )


def _sample(kafka: KafkaSettings) -> list[tuple[bytes, int, int]]:
    """(key, partition, timestamp in ms) of the last records of each partition of each source."""
    consumer = KafkaConsumer(**broker.connection(kafka), enable_auto_commit=False)
    try:
        tps = [TopicPartition(name, p) for name in kafka.sources for p in range(kafka.partitions)]
        consumer.assign(tps)
        begins, ends = consumer.beginning_offsets(tps), consumer.end_offsets(tps)
        open_tps = {tp for tp in tps if ends[tp] > begins[tp]}
        consumer.assign(sorted(open_tps))
        for tp in open_tps:
            consumer.seek(tp, max(begins[tp], ends[tp] - _SAMPLE))
        found: list[tuple[bytes, int, int]] = []
        give_up = time.monotonic() + _READ_S
        while open_tps and time.monotonic() < give_up:
            for page in consumer.poll(200).values():
                found += [(r.key, r.partition, r.timestamp) for r in page if r.key is not None]
            open_tps = {tp for tp in open_tps if consumer.position(tp) < ends[tp]}
        return found
    finally:
        consumer.close()


def redis(settings: Settings) -> Iterator[Check]:
    """Version, durability and clock of Redis, and whose deployment it holds."""
    try:
        facts, now_s, policy, meta = asyncio.run(_ask(settings))
    except FeatureStoreError as error:
        yield Check("redis", "failed", str(error))
        return
    name = "valkey" if "valkey_version" in facts else "redis"
    version = facts.get(f"{name}_version", "0")
    compatible = facts.get("redis_version", "0")
    if int(compatible.partition(".")[0]) < _OLDEST_REDIS:
        yield Check(
            "redis",
            "failed",
            f"Redis {version} is too old: use Redis {_OLDEST_REDIS} or newer, or Valkey",
        )
        return
    yield Check("redis", "ok", f"{name} {version} answers")
    if policy not in ("noeviction", ""):
        yield Check(
            "redis",
            "failed",
            f"Redis may throw values away (maxmemory-policy {policy}): set it to noeviction",
        )
    if facts.get("aof_enabled") == "0":
        yield Check(
            "redis",
            "warning",
            "Redis keeps no append-only file: after a crash the log is folded again from its "
            "last snapshot; set appendonly yes",
        )
    yield _meta(settings, meta)
    drift_s = now_s - time.time()
    if abs(drift_s) > _DRIFT_S:
        yield Check(
            "clock",
            "warning",
            f"Redis's clock is {abs(drift_s):.0f} s {'ahead of' if drift_s > 0 else 'behind'} "
            "this machine's: set both by NTP",
        )
    else:
        yield Check("clock", "ok", f"within {_DRIFT_S:.0f} s of Redis's")


def _meta(settings: Settings, meta: Meta | None) -> Check:
    if meta is None:
        return Check("deployment", "ok", "no worker has run on this Redis yet")
    for name in ("partitions", "partitioner"):
        held, ours = getattr(meta, name), getattr(settings.kafka, name)
        if held != ours:
            return Check(
                "deployment",
                "failed",
                f"this Redis holds a deployment with {name} {held}, the settings say {ours}: set "
                f"LIVEVALUE_KAFKA__{name.upper()}={held}, or name another database in "
                "LIVEVALUE_STORE__URL",
            )
    return Check("deployment", "ok", f"{counted(meta.partitions, 'partition')}, clock {meta.clock}")


async def _ask(settings: Settings) -> tuple[dict[str, str], float, str, Meta | None]:
    """INFO, TIME, the eviction policy ("" where we may not ask), `lv:meta`.

    Of a cluster, the policy of the first node whose is not as it should be.
    """
    links = Links.of(settings.store)
    try:
        info, now = await links.ask(None, [[b"INFO"], [b"TIME"]])
        policy = ""
        for node in await links.all():
            try:
                (config,) = await links.ask(node, [[b"CONFIG", b"GET", b"maxmemory-policy"]])
            except ErrorReply:  # managed Redis forbids CONFIG
                break
            policy = config[1].decode() if len(config) > 1 else ""
            if policy != "noeviction":
                break
    except ErrorReply as error:
        raise failure(str(error), links.where) from None
    finally:
        await links.close()
    store = RedisStore(settings.store)
    try:
        meta = await store.meta()
    finally:
        await store.close()
    lines = (line.partition(":") for line in info.decode().splitlines())
    facts = {name: value for name, colon, value in lines if colon}
    return facts, int(now[0]) + int(now[1]) / 1e6, policy, meta
