"""The archive: the log in Parquet files, exact by offsets, and its way back through the codec.

One folder a topic, one a partition in it, one file a range of offsets: the name says which
positions it covers, so a file is either wholly there or not at all, and an archiver that was
stopped goes on at the last file's end. Records are kept as they came (key, value, headers and
timestamp), bad ones too, with their log time: the running maximum of the record timestamps of
their source partition. Replaying an archive therefore meets the same end as replaying the log.

    archive/archive.json                     topics, their identities, partitions
    archive/events.purchase/3/00000000000000000000-00000000000000004217.parquet
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from featurestore.columns import NO_TIME, EventBatch
from featurestore.wording import counted
from streams.codec import Codec, merge
from streams.errors import LogFileError, LogReset
from streams.kafkalog import KafkaLog
from streams.pipeline import Positions
from streams.replay import Step
from streams.settings import Settings

SCHEMA = pa.schema(
    [
        ("offset", pa.int64()),
        ("timestamp", pa.int64()),  # of the record, ms
        ("log_time", pa.int64()),  # running maximum of the above, ms
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("headers", pa.list_(pa.struct([("name", pa.string()), ("value", pa.binary())]))),
    ]
)
_MANIFEST = "archive.json"
_ROWS = 200_000  # records a file: about 40 MB before compression


@dataclass(frozen=True, slots=True)
class Archived:
    """What an archive run wrote."""

    files: int
    events: int


@dataclass(frozen=True, slots=True)
class Record:
    """One record as the codec and the dead letters take it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """One file: positions from `before` up to `after` of a source partition."""

    path: Path
    before: int
    after: int


async def archive(
    settings: Settings,
    folder: Path,
    topic_ids: dict[str, str],
    progress: Callable[[int], None] | None = None,
) -> Archived:
    """Copy what the log holds beyond the archive's end into `folder`; resumable.

    Raises LogReset where the folder holds another log's records.
    """
    _claim_folder(settings, folder, topic_ids)
    files = events = 0
    async with KafkaLog(settings.kafka) as log:
        for partition in range(settings.kafka.partitions):
            starts, ends = await log.starts(partition), await log.ends(partition)
            for source, topic in enumerate(settings.kafka.sources):
                place = folder / topic / str(partition)
                parts = _parts(place)
                position = parts[-1].after if parts else starts[source]
                async for count in _copy(log, source, partition, position, ends, place):
                    files += 1
                    events += count
                    if progress:
                        progress(events)
    return Archived(files, events)


async def _copy(
    log: KafkaLog, source: int, partition: int, position: int, ends: tuple[int, ...], place: Path
) -> AsyncIterator[int]:
    """Write one source partition from `position` to its end; yields records a file."""
    start = list(ends)
    start[source] = position
    log_ms = _last_log_ms(place)
    rows: list[Record] = []
    before = after = position
    async for piece in log.slices(partition, start, ends, [NO_TIME] * len(ends)):
        rows += [
            Record(r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in piece.records
        ]
        after = piece.after
        if len(rows) >= _ROWS:
            log_ms = _write(place, before, after, rows, log_ms)
            yield len(rows)
            before, rows = after, []
    if after > before:
        _write(place, before, after, rows, log_ms)
        yield len(rows)


def _write(place: Path, before: int, after: int, rows: list[Record], log_ms: int) -> int:
    """One file, visible only when it is whole. Returns the log time at its end."""
    log_times = []
    for row in rows:
        log_ms = max(log_ms, row.timestamp)
        log_times.append(log_ms)
    table = pa.table(
        {
            "offset": [r.offset for r in rows],
            "timestamp": [r.timestamp for r in rows],
            "log_time": log_times,
            "key": [r.key for r in rows],
            "value": [r.value for r in rows],
            "headers": [[{"name": n, "value": v} for n, v in r.headers] for r in rows],
        },
        schema=SCHEMA.with_metadata({"log_ms": str(log_ms)}),
    )
    place.mkdir(parents=True, exist_ok=True)
    hidden = place / f".{before:020d}.tmp"
    pq.write_table(table, hidden, compression="zstd")
    with hidden.open("rb") as written:
        os.fsync(written.fileno())
    hidden.rename(place / f"{before:020d}-{after:020d}.parquet")
    return log_ms


def _parts(place: Path) -> list[_Part]:
    """Files of one source partition in order; LogFileError where one is missing between."""
    parts = []
    for path in sorted(place.glob("*.parquet")):
        before, after = path.stem.split("-")
        parts.append(_Part(path, int(before), int(after)))
    for one, two in itertools.pairwise(parts):
        if one.after != two.before:
            raise LogFileError(f"{place}: offsets {one.after} to {two.before} are missing")
    return parts


def _last_log_ms(place: Path) -> int:
    parts = _parts(place)
    if not parts:
        return NO_TIME
    metadata = pq.read_schema(parts[-1].path).metadata or {}
    return int(metadata[b"log_ms"])


def _claim_folder(settings: Settings, folder: Path, topic_ids: dict[str, str]) -> None:
    """Write or compare the manifest: one folder holds one log."""
    manifest = {
        "topics": list(settings.kafka.sources),
        "partitions": settings.kafka.partitions,
        "partitioner": settings.kafka.partitioner,
        "topic_ids": {t: topic_ids.get(t, "") for t in settings.kafka.sources},
    }
    path = folder / _MANIFEST
    if path.exists():
        found = json.loads(path.read_text())
        if found != manifest:
            raise LogReset(
                f"{path} is of another log ({found}): archive into another folder, or point "
                "LIVEVALUE_KAFKA__BOOTSTRAP at the log that it is of"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest, indent=1) + "\n")


def is_archive(path: Path) -> bool:
    """Whether `path` is a folder written by `livevalue archive`."""
    return (path / _MANIFEST).is_file()


def archive_ids(folder: Path) -> dict[str, str]:
    """Identities of the topics that an archive is of, by name."""
    found: dict[str, str] = json.loads((folder / _MANIFEST).read_text())["topic_ids"]
    return found


def archive_bounds(folder: Path, topic: str, partition: int) -> tuple[int, int] | None:
    """First position that an archive holds of a source partition, and the one after its last."""
    parts = _parts(folder / topic / str(partition))
    return (parts[0].before, parts[-1].after) if parts else None


def archive_records(folder: Path, topic: str, partition: int) -> Iterator[tuple[_Part, Record]]:
    """Records of one source partition in log order, each with the file it stands in."""
    for part in _parts(folder / topic / str(partition)):
        for batch in pq.ParquetFile(part.path).iter_batches(10_000):
            for row in batch.to_pylist():
                headers = tuple((h["name"], h["value"]) for h in row["headers"] or ())
                yield (
                    part,
                    Record(row["offset"], row["timestamp"], row["key"], row["value"], headers),
                )


async def archive_steps(
    settings: Settings, codec: Codec, folder: Path, size: int = 2000
) -> AsyncIterator[Step]:
    """Steps of an archive, partition by partition, sources lowest clock first."""
    found = json.loads((folder / _MANIFEST).read_text())
    if found["partitions"] != settings.kafka.partitions or tuple(found["topics"]) != (
        settings.kafka.sources
    ):
        raise LogFileError(
            f"{folder} holds topics {found['topics']} with "
            f"{counted(found['partitions'], 'partition')}: set LIVEVALUE_KAFKA__PARTITIONS and the "
            "topics to the same"
        )
    sources = settings.kafka.sources
    for partition in range(settings.kafka.partitions):
        readers = [_chunks(folder, topic, partition, size) for topic in sources]
        heads = [next(reader, None) for reader in readers]
        clocks = [NO_TIME] * len(sources)
        position = [0] * len(sources)
        while any(head is not None for head in heads):
            source = min(
                (s for s in range(len(sources)) if heads[s] is not None),
                key=lambda s: (clocks[s], s),
            )
            chunk = heads[source]
            heads[source] = next(readers[source], None)
            decoded = codec.decode(source, partition, chunk or [])
            position[source] = chunk[-1].offset + 1 if chunk else position[source]
            if decoded.batch.size:
                newest = int(decoded.batch.events["time_ms"].max())
                clocks[source] = max(clocks[source], newest)
            yield Step(partition, merge([decoded]), decoded.rejected, _at(position))
        bounds = [archive_bounds(folder, topic, partition) for topic in sources]
        ends = [held[1] if held else 0 for held in bounds]
        if position != ends:
            # Markers of transactions after the last record are positions, too.
            yield Step(partition, EventBatch.empty(), [], _at(ends))


def _at(position: Sequence[int]) -> Positions:
    sources = len(position)
    return Positions(tuple(position), ("",) * sources, "", (False,) * sources)


def _chunks(folder: Path, topic: str, partition: int, size: int) -> Iterator[list[Record]]:
    chunk: list[Record] = []
    for _, record in archive_records(folder, topic, partition):
        chunk.append(record)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
