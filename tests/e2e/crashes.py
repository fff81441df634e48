"""Crash a real worker at each named point, start another, and look whether all is exact.

One deployment serves all: the log goes on, so that each crash also stands on what the earlier
ones left. A worker is started armed (streams/crashpoints.py), driven to the point by what the point
needs (events; a Redis set back; a store built aside and announced), and must die by SIGKILL. The
next worker is armed again, so that some crash on the way back from a crash, or it is not and
settles: `exact` starts that one. Then the auditor of `make chaos`, which knows nothing of the
worker's code, must find nothing, and the live digest must be that of a replay.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from livevalue.jobs.replaying import digest_live, replay_source
from livevalue.jobs.storing import backfill
from livevalue.sources import FileOptions
from streams import topics
from streams.backfill import backfill_kafka, builder
from streams.crashpoints import VARIABLE
from streams.errors import Stale
from streams.settings import Settings
from streams.stores import Stores
from streams.topics import log_id
from tests.e2e.deployment import (
    Deployment,
    WorkerProcess,
    deployment_settings,
    send_all,
    some_events,
)

USERS = 40
_SENT = 6  # events at a time: the auditor folds the whole log with the slow twin
_PATIENCE_S = 40.0
_FLIPS = ("takeover_claimed", "before_flip", "after_flip", "sweep_page")
_KILLED = -9


def crash_settings(bootstrap: str, redis_url: str, prefix: str) -> Settings:
    """A worker that comes back under its name is let in at once, not after a session's end."""
    return deployment_settings(
        bootstrap, redis_url, prefix, kafka={"instance_id": "one", "session_timeout_s": 25.0}
    )


class Crashes:
    """Crashes of one deployment, one after the other."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._events: Iterator[tuple[int, dict[str, Any]]] = iter(some_events(10**6, USERS))
        self._worker: WorkerProcess | None = None
        self._number = 0
        self._announced = ""

    def crash(self, point: str, count: int = 1) -> None:
        """Die at `point` when it is passed for the `count`-th time."""
        self._number += 1
        if point == "backfill_step":
            self._crash_builder(count)
            return
        self._stop()
        if point in _FLIPS:
            self._announce()
        elif point == "make_good_page":
            self._set_back()
        worker = self._start(**{VARIABLE: f"{point}:{count}"})
        until = time.monotonic() + _PATIENCE_S
        while worker.exit_code is None:
            self.send()
            time.sleep(0.5)
            if time.monotonic() > until:
                raise AssertionError(f"{point}:{count} was not passed in {_PATIENCE_S:g} s")
        if worker.exit_code != _KILLED:
            raise AssertionError(f"{point}: exit code {worker.exit_code}, not by the crash")

    def send(self) -> None:
        """A few events more."""
        send_all(self._deployment, list(islice(self._events, _SENT)))

    def exact(self) -> list[str]:
        """A worker that is not armed settles; then what is not exact, [] where nothing is."""
        deployment = self._deployment
        if self._worker is None:
            self._worker = self._start()
        deployment.settle()
        deadline = time.monotonic() + _PATIENCE_S
        while not self._taken_over():
            if time.monotonic() > deadline:
                return [f"store {self._announced} was not taken over and swept"]
            time.sleep(0.1)
        deployment.settle()
        found = deployment.audit()
        said = [] if found.clean else [f"audit: {found}"]
        live = asyncio.run(digest_live(deployment.settings))
        replayed = asyncio.run(replay_source(deployment.settings, ["kafka"], FileOptions()))
        if live["digest"] != replayed["digest"]:
            said.append(f"digest: {live} live, {replayed} by replay")
        return said

    def close(self) -> None:
        """Stop what still runs."""
        self._stop()

    def _start(self, **more: str) -> WorkerProcess:
        return self._deployment.start(f"w{self._number}", **more)

    def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None and worker.exit_code is None:
            worker.kill()

    def _taken_over(self) -> bool:
        """The store announced last serves every partition, and all of its users were published."""
        for p, mark in self._deployment.watermarks().items():
            active: Any = self._deployment.redis.get(f"lv:{{{p}}}:active")
            progress = mark.get("progress")
            if self._announced and active != self._announced.encode():
                return False
            if progress and json.loads(progress).get("sweep") is not None:
                return False
        return True

    def _set_back(self) -> None:
        """Redis loses what a worker has committed and published since."""
        self._until_all_serve()  # behind its first commit, a partition is a lost store, and halts
        client = self._deployment.redis
        kept = {key: client.dump(key) for key in client.scan_iter("*", count=1000)}
        self.send()
        worker = self._start()
        self._deployment.settle()
        worker.kill()
        client.flushdb()
        for key, value in kept.items():
            client.restore(key, 0, value or b"")

    def _announce(self) -> None:
        """Build a store aside up to here, and name it as the next."""
        self._until_all_serve()  # nothing may serve yet: this point may be the first of all
        self._announced = name = f"aside-{self._number}"
        asyncio.run(self._build(name))
        self.send()

    def _until_all_serve(self) -> None:
        """Every partition has a commit, and no worker runs."""
        count = self._deployment.settings.kafka.partitions
        while len(self._deployment.watermarks()) < count:  # a few events may all go to one
            self.send()
            worker = self._start()
            self._deployment.settle()
            worker.kill()

    async def _build(self, name: str) -> None:
        settings = self._deployment.settings
        stores = Stores(settings)
        try:
            aside = stores.store(name)
            pipeline = builder(aside, settings, await stores.generation(""))
            ids = log_id(settings, await asyncio.to_thread(topics.topic_ids, settings))
            limits = {p: m.positions for p, m in await self._marks(stores) if m is not None}
            await backfill_kafka(pipeline, range(settings.kafka.partitions), ids, limits)
            for p in range(settings.kafka.partitions):
                await stores.store().set_next(p, name)
        finally:
            await stores.close()

    async def _marks(self, stores: Stores) -> list[tuple[int, Any]]:
        found = []
        for p in range(self._deployment.settings.kafka.partitions):
            store = stores.store(await stores.store().active(p) or "")
            found.append((p, (await store.load(p, [])).watermark))
        return found

    def _crash_builder(self, count: int) -> None:
        """A backfill dies after a step, is run again, and holds what a replay gives."""
        name = f"built-{self._number}"
        os.environ[VARIABLE] = f"backfill_step:{count}"  # its processes take it over
        try:
            self._backfill(name)
        except Stale as error:
            if "goes on where it stopped" not in str(error):
                raise
        else:
            raise AssertionError(f"backfill_step:{count} was not passed")
        finally:
            del os.environ[VARIABLE]
        built = self._backfill(name)["digest"]
        replayed = asyncio.run(replay_source(self._deployment.settings, ["kafka"], FileOptions()))
        if built != replayed["digest"]:
            raise AssertionError(f"digest {built} of the builder, {replayed['digest']} by replay")

    def _backfill(self, name: str) -> dict[str, Any]:
        settings = self._deployment.settings
        # By processes of its own: they die, we do not.
        return asyncio.run(backfill(settings, ["kafka"], name, None, FileOptions(), jobs=2))
