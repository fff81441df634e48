"""Reads values: of one user, the highest users, each change as it comes.

    from livevalue import ValueClient
    with ValueClient.connect() as values:
        values.get("ada")                       # now
        values.get("ada", at=some_time)         # if she stays silent until then
        values.top(20)
        for update in values.subscribe(): ...

Values are the JSON documents of the `scores` topic as dicts (contracts/value.json). Reads go to
Redis, one round trip each; `subscribe` reads the topic, read-committed. Neither torch nor Faust
is loaded. A client may be shared by threads; each `subscribe` has its own consumer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from featurestore import times
from featurestore.backends.redis import RedisStore
from featurestore.columns import NO_TIME
from featurestore.errors import StoreError
from featurestore.partitioner import partition
from featurestore.store import FeatureStore, Meta
from livevalue.background import Background
from livevalue.running import settings as found_settings
from streams.settings import Settings

Document = dict[str, Any]


class ValueClient:
    """One deployment's values. Close it, or use it in a `with` block."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._store: FeatureStore = RedisStore(settings.store)
        self._background = Background()
        self._meta: Meta | None = None

    @classmethod
    def connect(cls, settings: Settings | None = None) -> Self:
        """A client for these settings; without, for those of the environment.

        Where neither environment nor livevalue.toml names a broker, a stack that
        `livevalue up` or `livevalue demo` runs in `.livevalue` is found.
        """
        return cls(settings or found_settings())

    def get(self, user: str, at: datetime | None = None) -> Document | None:
        """What a user is worth at a time, now without one; None for an unknown user.

        `expected` and `p_active` follow the silence curve from the last event to that time.
        Quantiles have no such curve: now they are those last published (the worker publishes
        anew when a silent user's value has moved by LIVEVALUE_MODEL__REPUBLISH_SHARE), and in a
        value read at another time there are none.
        """
        meta = self.meta()
        number = partition(user, meta.partitions, meta.partitioner)
        text = self._background.call(self._store.document(number, user))
        if text is None:
            return None
        from scoring.documents import at as read_at

        published = json.loads(text)
        if at is not None:
            return read_at(published, times.of(at))
        now = read_at(published, self.now_ms())
        values = {name: published["values"][name] | of for name, of in now["values"].items()}
        return {**now, "values": values}

    def top(self, n: int = 20) -> list[Document]:
        """The n users of the highest headline value, highest first, as last published."""
        return self._background.call(self._top(self.meta(), n))

    def subscribe(
        self,
        user: str | None = None,
        *,
        from_beginning: bool = False,
        idle_s: float | None = None,
    ) -> Iterator[Document]:
        """Each update as it is published: of one user, or of all.

        From now on, or first what the topic still holds. An erased user comes once more, as
        {"user_id": ..., "erased": True}. Ends after `idle_s` seconds without an update, else
        never. The consumer stands when this returns: what is sent afterwards is seen.
        """
        from livevalue.subscription import Subscription

        number = None
        if user is not None:
            meta = self.meta()
            number = partition(user, meta.partitions, meta.partitioner)
        opened = Subscription(self.settings.kafka, user, number, from_beginning)
        return opened.updates(idle_s)

    def now_ms(self) -> int:
        """Now as this deployment counts it: the wall's time, or the log's where history plays."""
        meta = self.meta()
        if meta.clock != "log":
            return time.time_ns() // 1_000_000
        latest = self._background.call(self._log_time(meta))
        return time.time_ns() // 1_000_000 if latest == NO_TIME else latest

    def meta(self) -> Meta:
        """What the deployment says of itself; asked once."""
        if self._meta is None:
            found = self._background.call(self._store.meta())
            if found is None:
                raise StoreError(
                    "there are no values yet: start a worker (`livevalue run`), or check "
                    "LIVEVALUE_STORE__URL"
                )
            self._meta = found
        return self._meta

    async def _top(self, meta: Meta, n: int) -> list[Document]:
        pages = await asyncio.gather(*(self._store.top(p, n) for p in range(meta.partitions)))
        ranked = sorted(
            ((rank, user, p) for p, page in enumerate(pages) for user, rank in page),
            key=lambda entry: (-entry[0], entry[1]),
        )[:n]
        users: dict[int, list[str]] = {}
        for _, user, p in ranked:
            users.setdefault(p, []).append(user)
        read = await asyncio.gather(*(self._store.documents(p, us) for p, us in users.items()))
        held = {
            user: text
            for (_, asked), texts in zip(users.items(), read, strict=True)
            for user, text in zip(asked, texts, strict=True)
        }
        # A user may have been erased between the two reads.
        return [json.loads(text) for _, user, _ in ranked if (text := held[user]) is not None]

    async def _log_time(self, meta: Meta) -> int:
        async def latest(p: int) -> int:
            name = await self._store.active(p)
            if name is None:
                return NO_TIME
            store = RedisStore(self.settings.store, name=name)
            try:
                mark = (await store.load(p, [])).watermark
            finally:
                await store.close()
            return max(mark.clocks, default=NO_TIME) if mark else NO_TIME

        return max(await asyncio.gather(*(latest(p) for p in range(meta.partitions))))

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._background.close_after(self._store.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
