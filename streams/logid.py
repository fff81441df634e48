"""Is this the log that the store was folded from, and is this the store that we published from?

Identity of the logs: the UUID that the broker gives a topic when it is made (a topic that was
deleted and made again has another one, and no client notices by itself), positions inside
[log start, log end], and a mark: offset and hash of the last record before the watermark. A log
that was cut and written on while a worker read it shows in the trail, the marks of what was read
lately: the watermark's own may be of a record that came after the cut.

A store without a watermark is a first start only if nothing points at an earlier life: nothing
published, `scores` empty, the log whole from offset 0. Everything else halts the partition with
an error that says what to run, and never skips silently.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Mapping, Sequence

from aiokafka import TopicPartition  # type: ignore[import-untyped]

from featurestore.errors import StoreLost
from featurestore.store import Watermark
from streams.delivery import RawRecord
from streams.emit import Published
from streams.errors import LogReset, LogTruncated
from streams.gap import Bounds, LogReader

_ADOPT = "`livevalue recover adopt --dry-run` (keep the store, follow the log as it is now)"
_REBUILD = "`livevalue recover rebuild --dry-run` (fold archive and log again)"
_WIPE = "`livevalue recover wipe --dry-run` (begin anew)"


def record_mark(record: RawRecord) -> str:
    """Fingerprint of a record with its offset: what stands before a watermark.

    >>> from streams.delivery import Simple
    >>> record_mark(Simple(7, b"ada", b"{}", 5)).split(":")[0]
    '7'
    """
    seen = hashlib.blake2b(digest_size=8)
    for part in (record.key, record.value):
        seen.update(b"-" if part is None else b"+" + len(part).to_bytes(8, "little") + part)
    seen.update(int(record.timestamp).to_bytes(8, "little", signed=True))
    return f"{record.offset}:{seen.hexdigest()}"


_CUT = "cut"  # in the place of a record's hash
_TRAIL = 512
_TRAIL_S = 0.05  # a mark for so long at least; no other leader takes over that fast


class Trail:
    """Marks of the records that were read of a source, the last of each delivery, in their order.

    Reaches some 25 s back at least; the watchdog looks for other leaders more often.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int, str]] = deque(maxlen=_TRAIL)

    def saw(self, records: Sequence[RawRecord]) -> None:
        """Take in one delivery."""
        if not records:
            return
        now, last = time.monotonic(), records[-1]
        if len(self._marks) > 1 and now - self._marks[-2][0] < _TRAIL_S:
            self._marks.pop()
        self._marks.append((now, last.offset, record_mark(last)))

    def beyond(self, offset: int) -> str:
        """The first mark at or beyond `offset`; "" where nothing was read there."""
        return next((mark for _, at, mark in self._marks if at >= offset), "")


def cut_at(mark: str) -> int | None:
    """Where the log was cut and written on, if a watermark's mark says that.

    >>> cut_at("82:cut"), cut_at("82:1f0c9e5a7d3b2468"), cut_at("")
    (82, None, None)
    """
    offset, _, what = mark.partition(":")
    return int(offset) if what == _CUT else None


async def rewritten(reader: LogReader, tp: TopicPartition, mark: str, held: Bounds) -> bool:
    """Whether the log no longer holds the record of a mark: another one, or none.

    None: a marker, an aborted record or a hole where a committed record was, or the log's end
    before it. Of what retention has deleted nothing is known.
    """
    offset = int(mark.split(":", 1)[0]) if mark else -1
    if offset < held.start:
        return False
    if offset >= held.end:
        return True
    record = await reader.at(tp, offset)
    if record is not None:
        return record_mark(record) != mark
    return offset >= (await reader.bounds([tp]))[tp].start  # or retention was faster than we


async def cut_marks(
    reader: LogReader,
    tps: Sequence[TopicPartition],
    ended: Mapping[int, int],
    trails: Sequence[Trail],
    bounds: Sequence[Bounds],
) -> dict[int, str]:
    """By source, what the watermark is to say where the log was cut below what was read of it.

    ended: where another leader says that its predecessor's log ends. What was read first at or
    beyond that is of the predecessor, if anything is.
    """
    found = {}
    for source, end in ended.items():
        if await rewritten(reader, tps[source], trails[source].beyond(end), bounds[source]):
            found[source] = f"{end}:{_CUT}"
    return found


def check_store(
    partition: int,
    watermark: Watermark | None,
    published: Published | None,
    bounds: Sequence[Bounds],
    scores: Bounds,
) -> None:
    """Raise StoreLost where a store without a watermark is not a first start."""
    if watermark is not None:
        return
    why = ""
    if published is not None:
        why = f"commit {published.identity.seq} of it was published"
    elif scores.end > 0:
        why = "the scores topic holds values of it"
    elif any(b.start > 0 for b in bounds):
        why = "the log no longer starts at offset 0"
    if why:
        raise StoreLost(
            f"the store holds nothing of partition {partition}, yet {why}. Is it the right Redis "
            f"and store name? If the store is lost, run {_REBUILD} or {_WIPE}"
        )


def check_topics(partition: int, sources: Sequence[str], known: str, log_id: str) -> None:
    """Raise LogReset where a topic is another one than that of `known`, an identity of the logs.

    Needs no claim, so that a worker that was pointed at the Redis of another deployment does not
    fence the one that works there.
    """
    if not known or known == log_id:
        return
    was, now = known.split(","), log_id.split(",")
    others = [s for s, a, b in zip(sources, was, now, strict=False) if a != b] or list(sources)
    if len(others) == len(sources):
        raise LogReset(
            f"partition {partition}: no topic of {', '.join(sources)} is one that the store was "
            "folded from. Is it the Redis of this deployment (LIVEVALUE_STORE__URL), and its "
            "broker (LIVEVALUE_KAFKA__BOOTSTRAP)? If it is, and the topics were made again, run "
            f"{_ADOPT}, or {_WIPE}"
        )
    raise LogReset(
        f"partition {partition}: {', '.join(others)} is not the topic that the store was folded "
        f"from (made again?). Run {_ADOPT}, or {_WIPE}"
    )


async def check_log(
    reader: LogReader,
    tps: Sequence[TopicPartition],
    watermark: Watermark | None,
    published: Published | None,
    log_id: str,
    bounds: Sequence[Bounds],
) -> None:
    """Raise LogReset or LogTruncated where the log is not the one we folded, or lacks a part."""
    known = watermark.log_id if watermark else published.log_id if published else ""
    check_topics(tps[0].partition, [tp.topic for tp in tps], known, log_id)
    if watermark is None:
        return
    # After a roll-back of Redis the log must reach what was published. A publication that the store
    # knows of asks for no more than the store does: a recovery may have set its positions back.
    needed = watermark.positions
    if published is not None and published.identity != watermark.published:
        needed = published.positions
    for source, tp in enumerate(tps):
        position, held = watermark.positions[source], bounds[source]
        where = f"{tp.topic}/{tp.partition}"
        if held.start > position and not (watermark.base and position == 0):
            raise LogTruncated(
                f"{where} starts at offset {held.start}, the store needs {position}: retention "
                f"deleted what was never folded. Run {_REBUILD}, or {_ADOPT} and do without it"
            )
        if max(position, needed[source]) > held.end:
            raise LogReset(
                f"{where} ends at offset {held.end}, yet {max(position, needed[source])} was "
                f"folded: the log was lost or cut. Run {_ADOPT}, or {_WIPE}"
            )
        mark = watermark.marks[source] if watermark.marks else ""
        cut = cut_at(mark)
        if cut is not None:
            raise LogReset(
                f"{where} was cut at offset {cut} and written on while it was read: what it holds "
                f"from there on was not read, or not all of it. Run {_ADOPT}, or {_REBUILD}"
            )
        if await rewritten(reader, tp, mark, held):
            raise LogReset(
                f"{where} holds another record at offset {mark.split(':')[0]} than the one folded, "
                f"or none: the log was cut, and written on. Run {_REBUILD}, or {_ADOPT}"
            )
