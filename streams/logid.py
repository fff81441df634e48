"""Is this the log that the store was folded from, and is this the store that we published from?

Identity of the logs: the UUID that the broker gives a topic when it is made (a topic that was
deleted and made again has another one, and no client notices by itself), positions inside
[log start, log end], and a mark: offset and hash of the last record before the watermark. Of a log
that was cut and written on while a worker read it the mark may be of a record that came after the
cut: that shows in the trail (streams/trail.py).

A store without a watermark is a first start only if nothing points at an earlier life: nothing
published, `scores` empty, the log whole from offset 0. Everything else halts the partition with
an error that says what to run, and never skips silently.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from aiokafka import TopicPartition  # type: ignore[import-untyped]

from featurestore.errors import StoreLost
from featurestore.store import Watermark
from streams.delivery import RawRecord, hashed
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
    seen = hashed(record.key, record.value)
    seen.update(int(record.timestamp).to_bytes(8, "little", signed=True))
    return f"{record.offset}:{seen.hexdigest()}"


def offset_of(mark: str) -> int:
    """Where the record of a mark stands.

    >>> offset_of("82:1f0c9e5a7d3b2468")
    82
    """
    return int(mark.partition(":")[0])


_CUT = "cut"  # in the place of a record's hash


def cut_mark(offset: int) -> str:
    """What the watermark says in the place of a mark where the log was cut and written on."""
    return f"{offset}:{_CUT}"


def cut_at(mark: str) -> int | None:
    """Where the log was cut and written on, if a watermark's mark says that.

    >>> cut_at("82:cut"), cut_at("82:1f0c9e5a7d3b2468"), cut_at("")
    (82, None, None)
    """
    offset, _, what = mark.partition(":")
    return int(offset) if what == _CUT else None


async def gone(
    reader: LogReader,
    tp: TopicPartition,
    marks: Sequence[str],
    held: Bounds,
    *,
    compacted: bool = False,
) -> list[str]:
    """Those of `marks` of which the log no longer holds the record: another one, or none.

    None: a marker, an aborted record or a hole where a committed record was, or the log's end
    before it. Of what retention has deleted nothing is known. compacted: nor of a hole.
    """
    if any(offset_of(m) >= held.end for m in marks):
        held = (await reader.bounds([tp]))[tp]  # what was read since then is no evidence
    inside = {m: at for m in marks if held.start <= (at := offset_of(m)) < held.end}
    there = await reader.these(tp, inside.values()) if inside else {}
    lost = {m for m, at in inside.items() if at not in there or record_mark(there[at]) != m}
    if compacted:
        lost = {m for m in lost if inside[m] in there}
    elif any(inside[m] not in there for m in lost):
        start = (await reader.bounds([tp]))[tp].start  # or retention was faster than we
        lost -= {m for m in lost if inside[m] < start}
    return [m for m in marks if m in lost or offset_of(m) >= held.end]


async def rewritten(
    reader: LogReader, tp: TopicPartition, mark: str, held: Bounds, *, compacted: bool = False
) -> bool:
    """Whether the log no longer holds the record of a watermark's mark; see `gone`."""
    return bool(mark) and bool(await gone(reader, tp, [mark], held, compacted=compacted))


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
    compacted: Container[str] = (),
) -> None:
    """Raise LogReset or LogTruncated where the log is not the one we folded, or lacks a part.

    compacted: topics that may lack records for another reason.
    """
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
                f"{where} was cut at offset {cut} and written on: what it holds "
                f"from there on was not read, or not all of it. Run {_ADOPT}, or {_REBUILD}"
            )
        if await rewritten(reader, tp, mark, held, compacted=tp.topic in compacted):
            raise LogReset(
                f"{where} holds another record at offset {mark.split(':')[0]} than the one folded, "
                f"or none: the log was cut, and written on. Run {_REBUILD}, or {_ADOPT}"
            )
