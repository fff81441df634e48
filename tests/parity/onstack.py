"""A deployment on the real stack, with the nasty log in its topics and one worker over it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

from featurestore.partitioner import partition
from livevalue.embedded import Stack
from livevalue.jobs.replaying import digest_live, replay_source, verify_live
from livevalue.jobs.storing import backfill
from livevalue.sources import FileOptions
from scoring.generation import Generation
from streams.settings import Settings
from streams.stores import Stores
from tests.e2e.deployment import ROOT, Deployment, deployment_settings, environment
from tests.parity.nasty import TYPES, Sent

_databases = count(0)


def shaped(stack: Stack, prefix: str, *, mixed: bool, partitions: int, **worker: Any) -> Settings:
    """Settings of a deployment of its own, in a Redis database of its own."""
    url = stack.redis_url.rsplit("/", 1)[0] + f"/{next(_databases) % 12}"
    return deployment_settings(
        stack.bootstrap,
        url,
        prefix,
        partitions=partitions,
        worker=worker,
        kafka={"mixed": f"{prefix}events"} if mixed else None,
    )


def serve(settings: Settings, generation: Generation) -> str:
    """Let a first start take this generation."""

    async def work() -> str:
        stores = Stores(settings)
        try:
            made = await stores.registry().publish(generation)
            await stores.registry().promote(made)
            return made
        finally:
            await stores.close()

    return asyncio.run(work())


def send(deployment: Deployment, log: Iterable[Sent]) -> None:
    """Into the topics, with the timestamps that the log gives."""
    kafka = deployment.settings.kafka
    for sent in log:
        topic = kafka.sources[0] if kafka.mixed else kafka.sources[TYPES.index(sent.type)]
        deployment.producer.send(
            topic,
            key=sent.key,
            value=sent.value,
            partition=partition(sent.key, kafka.partitions, kafka.partitioner),
            timestamp_ms=sent.timestamp,
        )
    deployment.flush()


def live(settings: Settings) -> dict[str, Any]:
    return asyncio.run(digest_live(settings))


def replayed(settings: Settings, *src: str | Path, **options: Any) -> dict[str, Any]:
    made = FileOptions(**options)
    return asyncio.run(replay_source(settings, [str(s) for s in src], made))


def built(settings: Settings, *src: str | Path, store: str = "aside", **more: Any) -> Any:
    until = more.pop("until", None)
    names = [str(s) for s in src]
    return asyncio.run(backfill(settings, names, store, until, FileOptions(), jobs=1, **more))


def verified(settings: Settings, **options: Any) -> dict[str, Any]:
    return asyncio.run(verify_live(settings, options.pop("sample", None), **options))


def command(deployment: Deployment, *words: str, code: int = 0) -> dict[str, Any]:
    """What a command, run as a person runs it, writes as JSON; one clear line where it refuses."""
    done = deployment.command(*words, "--json", "-")
    assert done.returncode == code, done.stderr + done.stdout
    if code == 0 or done.stdout.startswith("{"):
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("livevalue: ")
    return {"said": line}


def generations(deployment: Deployment) -> dict[str, str]:
    """Generation of each user's document, as documents name it: by 12 digits."""
    found = {}
    keys: Any = deployment.redis.keys("lv:{*}:v:*")
    for key in keys:
        document: Any = deployment.redis.get(key)
        found[key.decode().rsplit(":", 1)[1]] = json.loads(document)["generation"]
    return found


def swept(deployment: Deployment, made: str, patience_s: float = 20.0) -> float:
    """Wait until every document is of generation `made`; -> seconds it took."""
    began = time.monotonic()
    while set((found := generations(deployment)).values()) != {made[:12]}:
        assert time.monotonic() - began < patience_s, found
        time.sleep(0.05)
    return time.monotonic() - began


def process(deployment: Deployment, *words: str) -> subprocess.Popen[str]:
    """A command as a process in a group of its own, so that its children can be killed with it."""
    return subprocess.Popen(
        [sys.executable, "-m", "livevalue", *words],
        cwd=deployment.folder,
        env={**os.environ, **environment(deployment.settings), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
