"""The owner's side of a flip: another store was announced, fold it up to here, and flip.

`lv:{p}:next` names a store that was built aside. While the owner goes on with its own work, the
other store is folded up to where the owner's stands (streams.takeover); once little is missing,
the owner holds still, the rest is folded, and at equal positions one FUNCTION flips. Then the
partition is claimed anew from the store that serves now, and every user published once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from featurestore.errors import FeatureStoreError
from featurestore.store import CommitOutcome, FeatureStore, Watermark
from scoring.errors import ScoringError
from scoring.generation import Generation
from streams import crashpoints, sweep
from streams.codec import Codec
from streams.errors import Stale, StreamsError
from streams.kafkalog import KafkaLog
from streams.settings import Settings
from streams.takeover import Takeover

log = logging.getLogger(__name__)

_NEAR = 2000  # positions that the owner may stand still for
# What may go wrong with the store that is taken over, and must not halt the one that serves.
_OTHERS = (StreamsError, FeatureStoreError, ScoringError, KafkaError)


class Flipped(StreamsError):
    """Another store serves now: claim again from it. Nothing went wrong."""


class Succession:
    """One partition's way from the store that serves to the one announced."""

    def __init__(
        self,
        partition: int,
        settings: Settings,
        codec: Codec,
        store: Callable[[str], FeatureStore],
        generation: Callable[[str], Awaitable[Generation]],
    ) -> None:
        self._partition = partition
        self._settings = settings
        self._codec = codec
        self._store = store
        self._generation = generation
        self._takeover: Takeover | None = None
        self._task: asyncio.Task[None] | None = None
        self._name = ""
        self._missing = ""  # what was said last about a store that cannot be taken over

    async def look(self, active: FeatureStore, token: str, mark: Watermark) -> None:
        """One look of the owner's. Raises Flipped once the other store serves."""
        if self._task is not None:
            if self._task.done():
                self._end()
            return
        name = await active.next(self._partition)
        if name is None:
            return
        if name == active.name:
            await active.set_next(self._partition, None)
            return
        ready = self._takeover
        if ready is not None and _distance(mark, ready.watermark) > 0:
            self._takeover = None  # we were rolled back behind it: it can only wait
            return
        if ready is None or name != self._name or _distance(ready.watermark, mark) > _NEAR:
            self._name = name
            self._task = asyncio.create_task(
                self._fold(name, mark), name=f"takeover-{self._partition}"
            )
            return
        await self._flip(ready, active, token, mark)

    def _end(self) -> None:
        """Take in how the background folding ended; what failed is tried again."""
        task, self._task = self._task, None
        error = task.exception() if task is not None and not task.cancelled() else None
        if error is None:
            return
        self._takeover = None
        if isinstance(error, _OTHERS):
            self._not_yet(error)
        else:
            log.error("store cannot be taken over", exc_info=error)

    def _not_yet(self, error: Exception) -> None:
        """Say once why the other store has to wait."""
        if str(error) != self._missing:
            self._missing = str(error)
            log.warning(
                "store cannot be taken over yet",
                extra={"partition": self._partition, "store": self._name, "error": str(error)},
            )

    async def _fold(self, name: str, mark: Watermark) -> None:
        """Fold the other store up to `mark`, while the owner goes on."""
        if self._takeover is None or self._takeover.pipeline.store.name != name:
            self._takeover = None
            self._takeover = await Takeover.begin(
                self._store(name), self._settings, self._partition, self._generation
            )
            log.info("taking a store over", extra={"partition": self._partition, "store": name})
        async with KafkaLog(self._settings.kafka) as reader:
            await self._takeover.catch_up(reader, self._codec, mark)

    async def _flip(
        self, ready: Takeover, active: FeatureStore, token: str, mark: Watermark
    ) -> None:
        """The owner holds still: fold the rest, then flip.

        Trouble of the other store is no trouble of ours: it is begun again at a later look.
        """
        self._takeover = None
        try:
            await self._make_equal(ready, mark)
        except _OTHERS as error:
            self._not_yet(error)
            return
        crashpoints.passing("before_flip")
        outcome = await ready.flip(active, token)
        crashpoints.passing("after_flip")
        if outcome is not CommitOutcome.OK:
            raise Stale(f"partition {self._partition} was not flipped: {outcome}")
        log.info("store flipped", extra={"partition": self._partition, "store": self._name})
        raise Flipped(f"partition {self._partition} is served by {self._name!r} now")

    async def _make_equal(self, ready: Takeover, mark: Watermark) -> None:
        """Bring the other store to where ours stands, with a sweep of all users pending."""
        async with KafkaLog(self._settings.kafka) as reader:
            await ready.catch_up(reader, self._codec, mark)
        if not sweep.pending(ready.watermark):
            # Back to a store that served before: its users' documents are the other's by now.
            done = await ready.pipeline.refresh(
                self._partition,
                ready.token,
                ready.watermark,
                [],
                None,
                "generation",
                progress=sweep.PENDING,
            )
            if done.outcome is not CommitOutcome.OK:
                raise Stale(f"store {self._name!r}, partition {self._partition}: {done.outcome}")

    async def close(self) -> None:
        """Stop folding; the other store stays where it is."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _distance(behind: Watermark, ahead: Watermark) -> int:
    pairs = zip(ahead.positions, behind.positions, strict=True)
    return sum(max(0, a - b) for a, b in pairs)
