"""The log read directly: holes in what was delivered, ends, single records, the last published.

A reader belongs to one owner of a partition and has no group. It works by positions: a read of
[low, high) ends only when the position has reached `high`, since a fetch that times out says
nothing about the log, and transaction markers move the position without giving a record
(measured: a re-read that took a timeout for the end lost 57 events).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.errors import (  # type: ignore[import-untyped]
    GroupAuthorizationFailedError,
    KafkaError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from streams.connection import aiokafka_options, stop
from streams.delivery import RawRecord
from streams.errors import LogAuthError, LogTruncated, LogUnavailable
from streams.settings import KafkaSettings

_POLL_MS = 300
_CALL_S = 10.0  # patience with one request; the caller backs off and comes again
_IDLE_S = 30.0  # without progress in a read: the broker is called unavailable
_FETCH_BYTES = 4 << 20
# The driver fetches once more behind the end that we read to, and a broker answers nothing else on
# that connection meanwhile: at 100 a claim of 1.0 s was .9 s of that.
_WAIT_MS = 10
_BACKOFF_MS = 20  # the driver also waits so long for the place of a topic that it hears of first
_RUN = 4096  # records read for those that are wanted among them; a wider gap is jumped over


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a partition's log holds: [start, end), end = last stable offset."""

    start: int
    end: int


class LogReader:
    """Reads single partitions by position, read-committed. Opens on first use."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._consumer: AIOKafkaConsumer | None = None
        self._lock = asyncio.Lock()

    async def close(self) -> None:
        """Drop the connection; the next use opens another."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop(consumer)

    async def bounds(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, Bounds]:
        """First offset and last stable offset of each."""
        async with self._lock:
            consumer = await self._open()
            try:
                starts = await asyncio.wait_for(consumer.beginning_offsets(list(tps)), _CALL_S)
                ends = await asyncio.wait_for(consumer.end_offsets(list(tps)), _CALL_S)
            except (KafkaError, OSError, TimeoutError) as error:
                raise await self._translate(error, f"offsets of {_names(tps)}") from error
        return {tp: Bounds(int(starts[tp]), int(ends[tp])) for tp in tps}

    async def read(
        self, tp: TopicPartition, low: int, high: int, most: int
    ) -> tuple[list[RawRecord], int]:
        """Records of [low, high) and the position reached: `high`, or less after `most` records.

        Raises LogTruncated where the log no longer holds `low`.
        """
        records: list[RawRecord] = []
        if low >= high:
            return records, low
        async with self._lock:
            consumer = await self._open()
            try:
                consumer.assign([tp])
                consumer.seek(tp, low)
                position, quiet_since = low, asyncio.get_running_loop().time()
                while position < high and len(records) < most:
                    got = await asyncio.wait_for(
                        consumer.getmany(tp, timeout_ms=_POLL_MS, max_records=most - len(records)),
                        _CALL_S,
                    )
                    now = asyncio.get_running_loop().time()
                    records += [r for r in got.get(tp, ()) if low <= r.offset < high]
                    reached = int(await asyncio.wait_for(consumer.position(tp), _CALL_S))
                    if reached > position:
                        position, quiet_since = reached, now
                    elif now - quiet_since > _IDLE_S:
                        raise TimeoutError(f"no progress from {position} on, end is {high}")
                consumer.pause(tp)  # or the driver would go on fetching what nobody asks for
            except OffsetOutOfRangeError as error:
                raise LogTruncated(
                    f"{tp.topic}/{tp.partition} no longer holds offset {low}, which is still "
                    "needed: run `livevalue recover rebuild --dry-run` (fold archive and log "
                    "again), or `livevalue recover adopt --dry-run` and do without it"
                ) from error
            except (KafkaError, OSError, TimeoutError) as error:
                raise await self._translate(error, f"{tp.topic}/{tp.partition}") from error
        return records, min(position, high)

    async def these(self, tp: TopicPartition, offsets: Iterable[int]) -> dict[int, RawRecord]:
        """The records at `offsets`, by offset, without those that the log does not hold (any more).

        Read in runs: one by one each would cost a seek and a fetch of megabytes. Measured after a
        broker's return with some 1,000 dead letters to be read again: they were not read before
        the next kill, over and over, and nothing was published meanwhile.
        """
        wanted, found = set(offsets), dict[int, RawRecord]()
        left = deque(sorted(wanted))
        while left:
            high = left[0] + 1
            for offset in left:
                if offset - high > _RUN:
                    break
                high = offset + 1
            try:
                records, reached = await self.read(tp, left[0], high, _RUN)
            except LogTruncated:
                reached = max((await self.bounds([tp]))[tp].start, left[0] + 1)
            else:
                found.update((r.offset, r) for r in records if r.offset in wanted)
            while left and left[0] < reached:
                left.popleft()
        return found

    async def last(
        self, tp: TopicPartition, before: int | None = None, *, valued: bool = False
    ) -> RawRecord | None:
        """The last committed record of a partition (before an offset), None where it holds none.

        valued: the last that is no tombstone.

        The end is asked for first: whoever has fenced the writers before knows that nothing
        open stands before it. Markers and compaction leave stretches without a record, so the
        search goes back in growing steps down to the start of the log.
        """
        found = (await self.bounds([tp]))[tp]
        high, step = found.end if before is None else min(before, found.end), 64
        while high > found.start:
            low = max(found.start, high - step)
            position, newest = low, None
            while position < high:
                records, position = await self.read(tp, position, high, 4096)
                fits = [r for r in records if not valued or r.value is not None]
                newest = fits[-1] if fits else newest
            if newest is not None:
                return newest
            high, step = low, step * 8
        return None

    async def _open(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                **aiokafka_options(self._kafka),
                enable_auto_commit=False,
                auto_offset_reset="none",
                isolation_level="read_committed",
                fetch_max_wait_ms=_WAIT_MS,
                retry_backoff_ms=_BACKOFF_MS,
                max_partition_fetch_bytes=_FETCH_BYTES,
                request_timeout_ms=int(_CALL_S * 1000),
            )
            try:
                await asyncio.wait_for(consumer.start(), _CALL_S)
            except (KafkaError, OSError, TimeoutError) as error:
                await stop(consumer)
                raise await self._translate(error, "a connection") from error
            except BaseException:  # cancelled: its client would go on asking for metadata
                await stop(consumer)
                raise
            self._consumer = consumer
        return self._consumer

    async def _translate(self, error: Exception, what: str) -> LogUnavailable | LogAuthError:
        await self.close()  # whatever state it is in, the next call begins anew
        if isinstance(error, (TopicAuthorizationFailedError, GroupAuthorizationFailedError)):
            return LogAuthError(f"the broker does not let us read {what}: grant it, or log in")
        hint = "is the broker up?"
        if isinstance(error, UnknownTopicOrPartitionError):
            hint = "does it exist? `livevalue topics --plan`"
        return LogUnavailable(
            f"{what}: no answer from {self._kafka.bootstrap} ({type(error).__name__}); {hint}"
        )


def _names(tps: Sequence[TopicPartition]) -> str:
    return ", ".join(f"{tp.topic}/{tp.partition}" for tp in tps)
