"""Which store serves a partition, with which generation: opened once, shared by all partitions.

`lv:{p}:active` names the store, its watermark names the generation, the registry has the
generation by content hash. A first start takes the generation from the settings, else the
registry's champion, else publishes and promotes `prior`, which needs no training.
"""

from __future__ import annotations

import asyncio

from featurestore.backends.redis import RedisStore
from featurestore.errors import StoreMismatch
from featurestore.store import FeatureStore, Identity, Meta
from scoring.generation import Generation, prior
from scoring.registry import Registry
from scoring.scorer import Scorer
from streams.pipeline import Pipeline
from streams.settings import Settings

_APP = "app"  # among `extra` of `lv:meta`: whose workers these are

SCHEMA = 1  # of the reader's keys and documents


class Stores:
    """Opens stores, generations and pipelines of one deployment on demand."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stores: dict[str, RedisStore] = {}
        self._pipelines: dict[tuple[str, str], Pipeline] = {}
        self._generations: dict[str, Generation] = {}
        self._lock = asyncio.Lock()

    def store(self, name: str = "") -> FeatureStore:
        """The store of that name; without one, the store of a first start."""
        name = name or self._settings.store.name
        if name not in self._stores:
            # Siblings share one pool of connections.
            first = next(iter(self._stores.values()), None)
            self._stores[name] = (
                first.sibling(name) if first else RedisStore(self._settings.store, name=name)
            )
        return self._stores[name]

    def registry(self) -> Registry:
        """Where generations are kept: beside the stores, or where the settings say."""
        where = self._settings.model.registry
        return Registry(self.store()) if where == "store" else Registry.at(where)

    async def generation(self, name: str) -> Generation:
        """A generation by id; "" is that of a first start."""
        if name not in self._generations:
            registry = self.registry()
            if name:
                self._generations[name] = await registry.get(name)
            else:
                found = self._settings.model.generation or await registry.champion()
                if found:
                    first = await registry.get(found)
                else:
                    first = prior(self._settings.model)
                    await registry.promote(await registry.publish(first))
                self._generations[first.id] = first
                return first
        return self._generations[name]

    async def pipeline_for(self, partition: int) -> Pipeline:
        """The pipeline into the store that serves `partition` now."""
        async with self._lock:
            name = await self.store().active(partition) or self._settings.store.name
            store = self.store(name)
            mark = (await store.load(partition, [])).watermark
            generation = await self.generation(mark.generation if mark else "")
            key = (name, generation.id)
            if key not in self._pipelines:
                scorer = Scorer(generation, self._settings.model, self._settings.features)
                self._pipelines[key] = Pipeline(store, scorer, self._settings)
            return self._pipelines[key]

    async def introduce(self) -> None:
        """Write `lv:meta` on a first start; StoreMismatch where it speaks of another deployment."""
        kafka, value, model = self._settings.kafka, self._settings.value, self._settings.model
        mine = Meta(
            schema=SCHEMA,
            partitions=kafka.partitions,
            partitioner=kafka.partitioner,
            unit={"kind": value.kind, "code": value.currency},
            horizons=tuple(f"d{days}" for days in model.horizons_days),
            store=self._settings.store.name,
            clock=self._settings.worker.clock,
            extra={_APP: kafka.app},
        )
        there = await self.store().meta()
        if there is None:
            await self.store().set_meta(mine)
            return
        # Before anything is claimed: two apps that fold the same topics would fence each other.
        app = there.extra.get(_APP, kafka.app)
        if app != kafka.app:
            raise StoreMismatch(
                f"this Redis holds the deployment of app {app!r}, the settings say {kafka.app!r}: "
                "set LIVEVALUE_STORE__URL to another Redis database, or LIVEVALUE_KAFKA__APP. If "
                f"the app was renamed, end the workers of {app!r} and `redis-cli DEL lv:meta`"
            )
        names = {
            "schema": "",
            "partitions": "LIVEVALUE_KAFKA__PARTITIONS",
            "partitioner": "LIVEVALUE_KAFKA__PARTITIONER",
            "unit": "LIVEVALUE_VALUE__CURRENCY",
            "horizons": "LIVEVALUE_MODEL__HORIZONS_DAYS",
            "clock": "LIVEVALUE_WORKER__CLOCK",
        }
        for name, setting in names.items():
            said, ours = getattr(there, name), getattr(mine, name)
            if said != ours:
                raise StoreMismatch(
                    f"this Redis holds a deployment with {name} {said!r}, the settings say "
                    f"{ours!r}: set {setting or 'nothing: it is of another version'}, or use "
                    "another Redis database"
                )

    async def permit(self) -> None:
        """StoreAuthError where our account may not run what commits; changes nothing.

        A reader's account sees everything that a start looks at, so it would show only in a claim.
        """
        await self.store().trim(0, "nobody", Identity(0, "nobody"))

    async def close(self) -> None:
        """Close every connection."""
        for store in self._stores.values():
            await store.close()
        self._stores.clear()
