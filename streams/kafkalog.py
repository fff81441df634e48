"""The log as offline jobs read it: one partition of every source, up to a fixed end.

Replay, backfill, verify and archive read through `KafkaLog`. Sources of a partition are taken
lowest clock first, as the live worker takes them, with transactions committed only, and by
positions: markers of transactions take offsets too, so records cannot be counted instead.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError, OffsetOutOfRangeError  # type: ignore[import-untyped]

from streams.broker import reach
from streams.connection import aiokafka_options, stop
from streams.errors import LogTruncated, LogUnavailable
from streams.settings import KafkaSettings

_POLL_MS = 500  # of one fetch; a fetch returns as soon as there is a byte
_PATIENCE_S = 60.0  # without any progress; a timed-out fetch is never the end of the log


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive records of one source partition: positions from `before` up to `after`."""

    source: int
    partition: int
    before: int
    after: int
    records: Sequence[Any]  # aiokafka ConsumerRecord


class KafkaLog:
    """Reads input topics by position. `async with KafkaLog(settings.kafka) as log: ...`"""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._consumer: AIOKafkaConsumer | None = None
        # By (source, partition): positions that were read and hold no record.
        self.holes: Counter[tuple[int, int]] = Counter()

    async def __aenter__(self) -> Self:
        self._consumer = AIOKafkaConsumer(
            **aiokafka_options(self._kafka),
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=100,
            max_partition_fetch_bytes=4 << 20,
        )
        try:
            await self._consumer.start()
        except (KafkaError, OSError) as error:
            await stop(self._consumer)
            await asyncio.to_thread(reach, self._kafka)  # says why, where it can be told
            raise LogUnavailable(
                f"no broker answers at {self._kafka.bootstrap} ({type(error).__name__}): start it, "
                "or set LIVEVALUE_KAFKA__BOOTSTRAP"
            ) from None
        except BaseException:  # cancelled: its client would go on asking for metadata
            await stop(self._consumer)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await stop(self._reader)

    @property
    def _reader(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise RuntimeError("KafkaLog is used outside `async with`")
        return self._consumer

    def _tp(self, source: int, partition: int) -> TopicPartition:
        return TopicPartition(self._kafka.sources[source], partition)

    async def starts(self, partition: int) -> tuple[int, ...]:
        """First offset that each source still holds."""
        return await self._edges(partition, self._reader.beginning_offsets)

    async def ends(self, partition: int) -> tuple[int, ...]:
        """Last stable offset of each source: everything before it is decided."""
        return await self._edges(partition, self._reader.end_offsets)

    async def _edges(self, partition: int, ask: Any) -> tuple[int, ...]:
        tps = [self._tp(s, partition) for s in range(len(self._kafka.sources))]
        try:
            found = await ask(tps)
        except KafkaError as error:
            raise LogUnavailable(
                f"the broker at {self._kafka.bootstrap} does not tell offsets of {tps} "
                f"({type(error).__name__}): check that the topics exist (`livevalue topics --plan`)"
            ) from None
        return tuple(int(found[tp]) for tp in tps)

    async def slices(
        self,
        partition: int,
        start: Sequence[int],
        end: Sequence[int],
        clocks: Sequence[int],
        size: int = 2000,
    ) -> AsyncIterator[Slice]:
        """Slices of at most `size` records from `start` up to `end`, lowest clock first.

        clocks: a list that the caller keeps up to date as it folds; it decides who is next.
        Raises LogTruncated where the log no longer holds `start`.
        """
        tps = [self._tp(s, partition) for s in range(len(start))]
        position = list(start)
        if all(p >= e for p, e in zip(position, end, strict=True)):
            # A consumer that is assigned and stopped at once hangs until it times out.
            return
        self._reader.assign(tps)
        for tp, offset in zip(tps, position, strict=True):
            self._reader.seek(tp, offset)
        while True:
            unread = [s for s in range(len(tps)) if position[s] < end[s]]
            if not unread:
                return
            source = min(unread, key=lambda s: (clocks[s], s))
            records, after = await self._fetch(tps[source], position[source], end[source], size)
            before, position[source] = position[source], after
            self.holes[source, partition] += after - before - len(records)
            yield Slice(source, partition, before, after, records)

    async def _fetch(
        self, tp: TopicPartition, position: int, end: int, size: int
    ) -> tuple[list[Any], int]:
        """Records from `position`, and the position after them; waits until there is progress."""
        waited = 0.0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                got = await self._reader.getmany(tp, timeout_ms=_POLL_MS, max_records=size)
                after = await self._reader.position(tp)
            except OffsetOutOfRangeError:
                raise LogTruncated(
                    f"{tp.topic}/{tp.partition} no longer holds offset {position}: replay from the "
                    "archive and the log together (`livevalue recover rebuild --dry-run`)"
                ) from None
            except KafkaError as error:
                got, after = {}, position
                if not error.retriable:
                    raise LogUnavailable(f"reading {tp.topic}/{tp.partition}: {error}") from None
            records = [r for r in got.get(tp, ()) if position <= r.offset < end]
            if after > position:
                return records, min(after, end)
            waited += asyncio.get_running_loop().time() - began
            if waited > _PATIENCE_S:
                raise LogUnavailable(
                    f"{tp.topic}/{tp.partition} gives nothing from offset {position} on, though "
                    f"its end is {end}: is the broker up?"
                )
