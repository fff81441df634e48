"""Deliveries reduced to one run: what of that which was delivered comes next, and nothing else.

A consumer may deliver records twice (a rebalance takes milliseconds, so buffers still hold what
comes again) or leave some out. Offsets cannot be counted, since markers of transactions and
aborted records take offsets too. So every delivery says from which position to which position
it speaks, and `run` joins deliveries into consecutive positions: repeats are dropped, and it
stops at the first hole, which the caller reads again from the log itself (streams/gap.py).

Measured without this: one batch held each record twice, and a right compare-and-set applied
4 events twice (docs/adr, "deliveries are reduced to runs").
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class RawRecord(Protocol):
    """One record as it lies in the log."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


def hashed(key: bytes | None, value: bytes | None) -> hashlib.blake2b:
    """A hash, begun, that tells records by key and value; None is not empty."""
    seen = hashlib.blake2b(digest_size=8)
    for part in (key, value):
        seen.update(b"-" if part is None else b"+" + len(part).to_bytes(8, "little") + part)
    return seen


@dataclass(slots=True, eq=False)
class Segment:
    """One delivery of one source partition: all the log holds in [before, after).

    before: position before the fetch, None where it cannot be vouched for (a seek or a new
    assignment came in between); holes between records are then real until read again.
    end: last stable offset when this was fetched, -1 where unknown.
    """

    before: int | None
    after: int
    records: Sequence[RawRecord]
    end: int = -1
    acked: bool = False

    def ack(self) -> None:
        """Say that everything in here is committed; a consumer's offset may move on."""
        self.acked = True
        self.records = ()


@dataclass(slots=True)
class Run:
    """Records at consecutive positions, and the position after them."""

    records: list[RawRecord] = field(default_factory=list)
    after: int = 0
    hole: int | None = None  # a hole reaches from `after` to here: read it from the log


def run(position: int, segments: deque[Segment], most: int) -> Run:
    """Take deliveries off `segments` that continue `position`, until `most` records or a hole.

    >>> def seen(*offsets):
    ...     return Segment(None, offsets[-1] + 1, [Simple(o) for o in offsets])
    >>> r = run(5, deque([seen(5, 5, 6, 6)]), 100)
    >>> [x.offset for x in r.records], r.after, r.hole
    ([5, 6], 7, None)
    >>> r = run(5, deque([seen(5, 6, 9)]), 100)
    >>> [x.offset for x in r.records], r.after, r.hole
    ([5, 6], 7, 9)
    """
    done = Run(after=position)
    while segments and len(done.records) < most:
        segment = segments[0]
        if segment.after <= done.after:
            segments.popleft()
            continue
        if segment.before is None:
            if _take_unsure(segment, done):
                segments.popleft()
                continue
            return done
        if segment.before > done.after:
            done.hole = segment.before
            return done
        if segment.before == done.after and _ascending(segment):
            done.records.extend(segment.records)
        else:
            for record in segment.records:
                if record.offset >= done.after:
                    done.records.append(record)
                    done.after = record.offset + 1
        done.after = max(done.after, segment.after)
        segments.popleft()
    return done


def _take_unsure(segment: Segment, done: Run) -> bool:
    """Take what follows without a hole; False where one shows, then stops in front of it."""
    for record in segment.records:
        if record.offset < done.after:
            continue
        if record.offset > done.after:
            done.hole = record.offset
            return False
        done.records.append(record)
        done.after = record.offset + 1
    if segment.after > done.after:
        done.hole = segment.after
        return False
    return True


def _ascending(segment: Segment) -> bool:
    """Whether the records are in strict order within their positions, as a fetch gives them."""
    records = segment.records
    if not records:
        return True
    if records[0].offset < (segment.before or 0) or records[-1].offset >= segment.after:
        return False
    previous = -1
    for record in records:
        if record.offset <= previous:
            return False
        previous = record.offset
    return True


@dataclass(frozen=True, slots=True)
class Simple:
    """A record that holds what it was given: for tests, and for records read from files."""

    offset: int
    key: bytes | None = None
    value: bytes | None = None
    timestamp: int = 0
    headers: Sequence[tuple[str, bytes]] = ()
