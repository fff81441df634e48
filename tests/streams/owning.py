"""One owner in this process: a real broker, the store in memory, and an audit of what came out.

The store is featurestore's memory backend, a real implementation whose `restore` is a Redis that
was rolled back. Records are produced to the broker; the owner reads them from the log by itself,
or is handed deliveries. The pauses of upkeep are cut short, except where a test is about how soon
something is noticed.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]

from featurestore.backends.memory import Backing, MemoryStore
from featurestore.settings import StoreSettings
from featurestore.store import FeatureStore
from scoring.generation import Generation, prior
from scoring.scorer import Scorer
from streams import topics, upkeep
from streams.codec import Codec
from streams.delivery import RawRecord
from streams.gap import LogReader
from streams.metrics import Metrics
from streams.partition import Owner
from streams.pipeline import Pipeline
from streams.publish import Breath, Pacer
from streams.settings import KafkaSettings, Settings, WorkerSettings
from streams.succession import Succession
from streams.surroundings import Surroundings

START_MS = 1_700_000_000_000
PAUSES = {"_WATCH_S": 0.5, "_SILENCE_S": 0.2, "_SUCCESSION_S": 0.2}


def one_partition(bootstrap: str, prefix: str, **worker: Any) -> Settings:
    """Settings of a deployment with one mixed topic of one partition."""
    return Settings(
        kafka=KafkaSettings(
            bootstrap=bootstrap,
            app=f"{prefix}app",
            mixed=f"{prefix}events",
            scores=f"{prefix}scores",
            dlq=f"{prefix}dlq",
            partitions=1,
        ),
        store=StoreSettings(),
        worker=WorkerSettings(**{"clock": "log", **worker}),
    )


class Owning:
    """`async with Owning(settings) as owning`: produce, own, roll back, audit.

    as_live: with the pauses that a worker makes.
    """

    def __init__(self, settings: Settings, *, as_live: bool = False) -> None:
        self.settings = settings
        self._pauses = pytest.MonkeyPatch()
        self._as_live = as_live
        self.backing = Backing()
        self.store = MemoryStore("main", self.backing)
        self.metrics = Metrics()
        self.now_ms = START_MS
        self.owner: Owner | None = None
        self.succession: Callable[[int], Succession] | None = None
        self._owners: list[Owner] = []
        self.sent: Counter[str] = Counter()
        self._number = 0

    async def __aenter__(self) -> Owning:
        for name, pause_s in ({} if self._as_live else PAUSES).items():
            self._pauses.setattr(upkeep, name, pause_s)
        await asyncio.to_thread(topics.apply, self.settings)
        self.producer = AIOKafkaProducer(
            bootstrap_servers=self.settings.kafka.bootstrap, enable_idempotence=True
        )
        await self.producer.start()
        self.reader = LogReader(self.settings.kafka)
        self.pipelines: dict[str, Pipeline] = {}
        return self

    def follow(
        self,
        store: Callable[[str], FeatureStore],
        generation: Callable[[str], Awaitable[Generation]],
    ) -> None:
        """Let owners take over the stores that are announced."""
        codec = Codec(self.settings)
        self.succession = lambda partition: Succession(
            partition, self.settings, codec, store, generation
        )
        self._store_named = store

    async def __aexit__(self, *_: object) -> None:
        for owner in self._owners:
            await owner.close(drain=False)
        await self.reader.close()
        await self.producer.stop()
        self._pauses.undo()

    def own(self) -> Owner:
        """A new owner, as after an assignment."""

        async def pipeline_for(partition: int) -> Pipeline:
            name = await self.store.active(partition) or "main"
            if name not in self.pipelines:
                model, features = self.settings.model, self.settings.features
                scorer = Scorer(prior(model), model, features)
                store = self._store_named(name) if name != "main" else self.store
                self.pipelines[name] = Pipeline(store, scorer, self.settings)
            return self.pipelines[name]

        async def logs() -> topics.Logs:
            return await asyncio.to_thread(topics.logs, self.settings)

        around = Surroundings(
            settings=self.settings,
            codec=Codec(self.settings),
            metrics=self.metrics,
            pacer=Pacer(self.settings.worker.transactions_per_s),
            breath=Breath(),
            pipeline_for=pipeline_for,
            logs=logs,
            now_ms=lambda: self.now_ms,
            succession_for=self.succession,
        )
        self.owner = Owner(0, around)
        self._owners.append(self.owner)
        self.owner.start()
        return self.owner

    async def send(self, count: int, users: int = 40) -> None:
        """Purchases of `users` users in turn, one a second of event time."""
        topic = self.settings.kafka.sources[0]
        for _ in range(count):
            n = self._number
            self._number += 1
            user = f"u{n % users}"
            event = {
                "type": "purchase",
                "event_id": f"e{n}",
                "user_id": user,
                "event_time": START_MS + n * 1000,
                "amount": "1.50",
            }
            await self.producer.send(
                topic, json.dumps(event).encode(), key=user.encode(), partition=0
            )
            self.sent[user] += 1
        await self.producer.flush()
        if self.owner is not None:
            await self.show_end()

    async def show_end(self) -> None:
        """Tell the owner how far the log reaches, as the watchdog does."""
        assert self.owner is not None
        self.owner.saw_end(await self.ends())

    async def ends(self) -> tuple[int, ...]:
        tps = [TopicPartition(topic, 0) for topic in self.settings.kafka.sources]
        found = await self.reader.bounds(tps)
        return tuple(found[tp].end for tp in tps)

    async def end(self) -> int:
        """End of the first source."""
        return (await self.ends())[0]

    async def until(self, what: Any, patience_s: float = 20.0) -> None:
        """Wait until `what()` is true."""
        for _ in range(int(patience_s / 0.02)):
            if what():
                return
            await asyncio.sleep(0.02)
        owner = self.owner
        assert owner is not None
        raise AssertionError(
            f"waited {patience_s} s in vain; watermark {owner.watermark}, lag {owner.lag}, ready "
            f"{owner.ready}, outbox {owner.outbox_users}, halted {owner.halted!r}"
        )

    async def settle(self, patience_s: float = 20.0) -> None:
        """Until all is folded and published."""
        ends = await self.ends()
        owner = self.owner
        assert owner is not None

        def settled() -> bool:
            mark = owner.watermark
            return (
                mark is not None
                and all(at >= end for at, end in zip(mark.positions, ends, strict=True))
                and not owner.rolling
                and owner.outbox_users == 0
                and owner.idle
            )

        await self.until(settled, patience_s)

    async def scores(self) -> list[RawRecord]:
        return await self.read(self.settings.kafka.scores)

    async def end_of_scores(self) -> int:
        """Where `scores` ends, the last marker included."""
        tp = TopicPartition(self.settings.kafka.scores, 0)
        return (await self.reader.bounds([tp]))[tp].end

    async def until_swept(self, records: int) -> None:
        """Wait until `scores` holds at least so many records, and all is published."""
        for _ in range(400):
            if len(await self.scores()) >= records:
                await self.settle()
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{len(await self.scores())} records on scores, not {records}")

    async def read(self, topic: str) -> list[RawRecord]:
        tp = TopicPartition(topic, 0)
        held = (await self.reader.bounds([tp]))[tp]
        records, _ = await self.reader.read(tp, held.start, held.end, 1_000_000)
        return records

    async def audit(self) -> dict[str, int]:
        """Everything that must be zero."""
        seen: Counter[tuple[str, int]] = Counter()
        last: dict[str, bytes] = {}
        backwards = 0
        highest: dict[str, int] = {}
        for record in await self.scores():
            assert record.key is not None
            user = record.key.decode()
            if record.value is None:
                last.pop(user, None)
                continue
            revision = json.loads(record.value)["revision"]
            seen[user, revision] += 1
            backwards += revision < highest.get(user, 0)
            highest[user] = max(revision, highest.get(user, 0))
            last[user] = record.value
        wrong = differ = 0
        for user, count in self.sent.items():
            held = await self.store.document(0, user)
            differ += held is None or held != last.pop(user, None)
            wrong += held is None or json.loads(held)["history"]["orders"] != count
        differ += len(last)  # of users of whom the log knows nothing
        return {
            "twice": sum(n - 1 for n in seen.values()),
            "backwards": backwards,
            "differ": differ,
            "wrong": wrong,
        }


CLEAN = {"twice": 0, "backwards": 0, "differ": 0, "wrong": 0}
