"""The ingest agent: whole fetches in, one owner a partition, processed side by side.

There is one agent over all input topics. It hands each fetch to the owners of its partitions
and never raises into Faust: an agent that raised stalls (measured), and Faust's batch streams
acknowledge what a failed handler left undone. Owners acknowledge what they have committed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from faust.types import TP

from streams.partition import Owner
from streams.surroundings import Surroundings
from streams.transport import Consumer, Poll

log = logging.getLogger(__name__)


class Ingest:
    """The partitions that this worker owns, and their owners."""

    def __init__(self, around: Surroundings) -> None:
        self.owners: dict[int, Owner] = {}
        self.partly: list[int] = []  # assigned to us, but not of every source: nobody serves them
        self.assigned_once = False
        self.around = replace(around, pause=self._pause, resume=self._resume)
        self._sources = {t: s for s, t in enumerate(around.settings.kafka.sources)}
        self._leaving: dict[int, Owner] = {}
        self._consumer: Consumer | None = None

    def assigned(self, consumer: Any, tps: Iterable[TP]) -> None:
        """After a rebalance: own each partition that we hold of every source."""
        self._consumer = consumer
        self.assigned_once = True
        held = Counter(tp.partition for tp in tps if tp.topic in self._sources)
        self.partly = sorted(p for p, count in held.items() if count != len(self._sources))
        for partition, count in sorted(held.items()):
            if partition in self.partly:
                log.error(
                    "partition not held of every source: a topic is missing, or was made again, or "
                    "another worker reads other topics",
                    extra={"partition": partition, "held": count},
                )
                continue
            owner = self.owners[partition] = Owner(partition, self.around)
            owner.start(after=self._leaving.pop(partition, None))
        self.around.metrics.owned.set(len(self.owners))
        log.info("assigned", extra={"partitions": sorted(self.owners)})

    def revoked(self) -> None:
        """Before a rebalance: all owners stop after the batch at hand."""
        self._leaving = {p: o for p, o in self._leaving.items() if not o.stopped}
        for partition, owner in self.owners.items():
            self._leaving[partition] = owner
            owner.stop_soon()
        self.owners.clear()
        self.around.metrics.owned.set(0)

    def deliver(self, poll: Poll) -> None:
        """Hand one fetch to the owners. Never raises, never waits."""
        for tp, segment in poll.segments.items():
            owner = self.owners.get(tp.partition)
            if owner is not None:
                owner.deliver(self._sources[tp.topic], segment)
            else:
                segment.records = ()  # of before a rebalance: whoever owns it now reads it

    async def close(self) -> None:
        """Finish the batches at hand and publish what is committed."""
        owners = [*self.owners.values(), *self._leaving.values()]
        self.owners.clear()
        await asyncio.gather(*(owner.close(drain=True) for owner in owners))

    def _pause(self, partition: int, source: int) -> None:
        if self._consumer is not None:
            self._consumer.pause([self._tp(partition, source)])

    def _resume(self, partition: int, source: int) -> None:
        if self._consumer is not None:
            self._consumer.resume([self._tp(partition, source)])

    def _tp(self, partition: int, source: int) -> TP:
        return TP(self.around.settings.kafka.sources[source], partition)
