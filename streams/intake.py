"""What of a partition is taken next: lowest clock first among its sources, in one batch.

Deliveries of each source are reduced to a run of consecutive positions (streams/delivery.py)
and decoded once, in chunks. A batch takes records over all sources in the order of their
source's clock, so that what is folded does not depend on which topic happened to be fetched
first, and no source gets more than `pause_ahead` of event time ahead of one that has unread
records. The order changes no result of the fold; it keeps tails short.

Positions, not records, say how far a batch reaches. Times are integer milliseconds, UTC.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from featurestore.columns import NO_TIME, Erase, EventBatch
from streams.codec import Codec, Decoded, merge
from streams.deadletter import Rejected
from streams.delivery import RawRecord, Segment, run
from streams.logid import record_mark
from streams.settings import Settings
from streams.trail import Trail

_FAR = np.iinfo(np.int64).max
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Hole:
    """Positions [low, high) of a source that were not delivered: to be read from the log."""

    source: int
    low: int
    high: int


@dataclass(slots=True)
class Chunk:
    """Decoded records at consecutive positions up to `after`; the first `taken` are used."""

    records: list[RawRecord]
    after: int
    decoded: Decoded
    order: npt.NDArray[np.int64]  # (N,) clock of the source after each record
    erases: npt.NDArray[np.int64]  # (E,) offsets of the batch's erase records
    taken: int = 0

    @property
    def left(self) -> int:
        """Records not yet used."""
        return len(self.records) - self.taken


@dataclass(slots=True)
class Source:
    """One source of the partition."""

    position: int = 0  # where the watermark stands
    cursor: int = 0  # end of what is decoded
    clock: int = NO_TIME  # at `position`
    mark: str = ""
    end: int = 0  # last stable offset, as far as known
    segments: deque[Segment] = field(default_factory=deque)
    chunks: deque[Chunk] = field(default_factory=deque)
    unacked: deque[Segment] = field(default_factory=deque)
    trail: Trail = field(default_factory=Trail)

    @property
    def buffered(self) -> int:
        """Records delivered and not yet committed."""
        return sum(len(s.records) for s in self.segments) + sum(c.left for c in self.chunks)

    @property
    def in_hand(self) -> int:
        """Position up to which everything was delivered, without a hole."""
        at = self.cursor
        for segment in self.segments:
            if segment.before is None or segment.before > at:
                break
            at = max(at, segment.after)
        return at

    @property
    def more(self) -> bool:
        """Whether there is more than what is decoded, here or in the log."""
        return bool(self.segments) or self.end > self.cursor


@dataclass(slots=True)
class Taken:
    """One batch and where it ends, not committed yet."""

    batch: EventBatch
    rejected: list[Rejected]
    positions: tuple[int, ...]
    marks: tuple[str, ...]
    records: int
    counts: tuple[int, ...]  # records taken of each source
    raw: dict[int, list[RawRecord]]  # source -> records


class Intake:
    """Buffers and decodes what was delivered of one partition."""

    def __init__(self, codec: Codec, partition: int, settings: Settings) -> None:
        self._codec = codec
        self._partition = partition
        self._batch = settings.worker.batch
        self._ahead_ms = int(settings.worker.pause_ahead.total_seconds() * 1000)
        self._skew_ms = int(settings.features.skew.total_seconds() * 1000)
        self.sources = [Source() for _ in settings.kafka.sources]
        self.decoded = 0
        self.misrouted = 0

    def reset(self, positions: Sequence[int], clocks: Sequence[int], marks: Sequence[str]) -> None:
        """Begin anew from a watermark; what was decoded is forgotten, deliveries are kept.

        Not those that were acknowledged: they gave their records up, and after a roll-back an
        empty delivery would say that the log holds nothing there (40 of 40 users lost events).
        """
        for s, source in enumerate(self.sources):
            source.segments = deque(kept for kept in source.segments if not kept.acked)
            source.position = source.cursor = positions[s]
            source.clock, source.mark = clocks[s], marks[s]
            source.chunks.clear()
        self.decoded = self.misrouted = 0

    @property
    def buffered(self) -> int:
        """Records delivered and not yet committed."""
        return sum(source.buffered for source in self.sources)

    @property
    def pending(self) -> bool:
        """Whether there may be something to take, be it a position that moved over markers."""
        return any(source.segments or source.chunks for source in self.sources)

    def deliver(self, source: int, segment: Segment) -> None:
        """Take a delivery in."""
        into = self.sources[source]
        into.trail.saw(segment.records)
        into.segments.append(segment)
        into.unacked.append(segment)
        into.end = max(into.end, segment.end, segment.after)

    def fill(self) -> list[Hole]:
        """Reduce and decode until every source has a batch ready; -> holes found on the way."""
        holes = []
        for s, source in enumerate(self.sources):
            ready = sum(c.left for c in source.chunks)
            while source.segments and ready < self._batch:
                done = run(source.cursor, source.segments, self._batch)
                if done.after > source.cursor:
                    self.insert(s, done.records, done.after)
                    ready += len(done.records)
                if done.hole is not None:
                    holes.append(Hole(s, done.after, done.hole))
                    break
        return holes

    def insert(self, s: int, records: list[RawRecord], after: int) -> None:
        """Decode records that continue the cursor, up to position `after`."""
        source = self.sources[s]
        decoded = self._codec.decode(s, self._partition, records)
        clock = self._clock(source)
        erased = np.empty(0, np.int64)
        if decoded.batch.erases:
            refused = {r.offset for r in decoded.rejected}
            erased = np.array(
                [r.offset for r in records if r.value is None and r.offset not in refused],
                np.int64,
            )
        source.chunks.append(
            Chunk(records, after, decoded, self._order(records, decoded, clock), erased)
        )
        source.cursor = after
        self.decoded += len(records)
        self.misrouted += sum(r.reason == "misrouted" for r in decoded.rejected)

    @staticmethod
    def _clock(source: Source) -> int:
        """Clock at the end of what is decoded."""
        for chunk in reversed(source.chunks):
            if len(chunk.order):
                return int(chunk.order[-1])
        return source.clock

    def _order(
        self, records: Sequence[RawRecord], decoded: Decoded, clock: int
    ) -> npt.NDArray[np.int64]:
        order = np.full(len(records), NO_TIME, np.int64)
        batch = decoded.batch
        if batch.size:
            offsets = np.fromiter((r.offset for r in records), np.int64, len(records))
            latest = batch.events["record_ms"] + self._skew_ms
            # Beyond the skew an event moves no clock, so it may not move the order either.
            times = np.where(batch.events["time_ms"] > latest, NO_TIME, batch.events["time_ms"])
            order[np.searchsorted(offsets, batch.offset)] = times
        if len(order):
            order[0] = max(int(order[0]), clock)
        return np.maximum.accumulate(order)

    def take(self, most: int) -> Taken | None:
        """The next batch of at most `most` records; None where nothing may be taken now.

        Nothing is used up: the same batch is given again until `commit` is called.
        """
        counts = self._counts(most)
        parts: list[Decoded] = []
        raw: dict[int, list[RawRecord]] = {}
        rejected: list[Rejected] = []
        positions = [s.position for s in self.sources]
        marks = [s.mark for s in self.sources]
        for s, source in enumerate(self.sources):
            left = counts[s]
            for chunk in source.chunks:
                count = min(left, chunk.left)
                left -= count
                end = chunk.taken + count
                if end == len(chunk.records):
                    positions[s] = chunk.after
                elif count:
                    positions[s] = chunk.records[end - 1].offset + 1
                if count:
                    part = _part(chunk, chunk.taken, end)
                    parts.append(part)
                    rejected += part.rejected
                    raw.setdefault(s, []).extend(chunk.records[chunk.taken : end])
                    marks[s] = record_mark(chunk.records[end - 1])
                if end < len(chunk.records):
                    break
        if all(p == s.position for p, s in zip(positions, self.sources, strict=True)):
            return None
        batch = merge(parts) if parts else EventBatch.empty()
        return Taken(
            batch, rejected, tuple(positions), tuple(marks), sum(counts), tuple(counts), raw
        )

    def trails(self, positions: Sequence[int]) -> tuple[str, ...]:
        """What was read lately of each source below `positions`, for the watermark."""
        return tuple(s.trail.text(at) for s, at in zip(self.sources, positions, strict=True))

    def nothing(self) -> Taken:
        """A batch without records that ends where we stand."""
        return Taken(
            EventBatch.empty(),
            [],
            tuple(s.position for s in self.sources),
            tuple(s.mark for s in self.sources),
            0,
            (0,) * len(self.sources),
            {},
        )

    def _counts(self, most: int) -> list[int]:
        """How many of each source's decoded records come next."""
        if len(self.sources) == 1:
            return [min(sum(chunk.left for chunk in self.sources[0].chunks), most)]
        # A source with more to come holds the others back: its next record may be older.
        ends = [self._clock(s) for s in self.sources]
        waits = [s.more for s in self.sources]
        orders = []
        for s, source in enumerate(self.sources):
            limit = min((ends[o] for o in range(len(ends)) if o != s and waits[o]), default=_FAR)
            limit = limit + self._ahead_ms if NO_TIME < limit < _FAR - self._ahead_ms else limit
            order = np.concatenate([_NONE, *(c.order[c.taken :] for c in source.chunks)])
            orders.append(order[: int(np.searchsorted(order, limit, "right"))])
        free = [len(o) for o in orders]
        if sum(free) <= most:
            return free
        merged = np.argsort(np.concatenate(orders), kind="stable")[:most]
        owner = np.repeat(np.arange(len(free)), free)[merged]
        return [int(n) for n in np.bincount(owner, minlength=len(free))]

    def commit(self, taken: Taken, clocks: Sequence[int]) -> None:
        """Use `taken` up: it is committed."""
        for s, source in enumerate(self.sources):
            source.position = taken.positions[s]
            source.clock, source.mark = clocks[s], taken.marks[s]
            left = taken.counts[s]
            while source.chunks:
                chunk = source.chunks[0]
                count = min(left, chunk.left)
                left -= count
                chunk.taken += count
                if chunk.left or source.position < chunk.after:
                    break
                source.chunks.popleft()
            while source.unacked and source.unacked[0].after <= source.position:
                source.unacked.popleft().ack()

    def waiting_for(self) -> list[Hole]:
        """Sources of which more is in the log than was delivered, and less than a batch is here.

        Whoever has a batch at hand cannot go on for another reason (the outbox is full, another
        source is to come first): what is read beyond it would only lie here, up to the whole log.
        """
        return [
            Hole(s, source.cursor, source.end)
            for s, source in enumerate(self.sources)
            if source.end > source.cursor and not source.segments and source.buffered < self._batch
        ]


def _part(chunk: Chunk, low: int, high: int) -> Decoded:
    """The decoded form of records [low, high) of a chunk."""
    decoded = chunk.decoded
    if low == 0 and high == len(chunk.records):
        return decoded
    first, last = chunk.records[low].offset, chunk.records[high - 1].offset
    batch = decoded.batch
    a, b = (int(i) for i in np.searchsorted(batch.offset, (first, last + 1)))
    e, f = (int(i) for i in np.searchsorted(chunk.erases, (first, last + 1)))
    erases = batch.erases[e:f]
    rows = np.concatenate([batch.user[a:b], np.array([x.user for x in erases], np.int32)])
    kept, user = np.unique(rows, return_inverse=True)
    events = EventBatch(
        users=[batch.users[r] for r in kept.tolist()],
        user=user[: b - a].astype(np.int32),
        events=batch.events[a:b],
        offset=batch.offset[a:b],
        log_ms=batch.log_ms[a:b],
        erases=[
            Erase(int(u), x.source, x.record_ms)
            for u, x in zip(user[b - a :].tolist(), erases, strict=True)
        ],
        event_id=batch.event_id[a:b],
        target=batch.target[a:b],
    )
    rejected = [r for r in decoded.rejected if first <= r.offset <= last]
    return Decoded(events, rejected, 0, 0)
