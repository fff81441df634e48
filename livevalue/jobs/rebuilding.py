"""recover rebuild: fold archive and log again into a store of its own.

The archive is exact by offsets, so the log goes on where it ends. Whether both together reach from
offset 0 to the log's end is looked at before anything is folded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featurestore.store import FeatureStore, Watermark
from livevalue.jobs.storing import build
from livevalue.output import Refused
from livevalue.sources import KAFKA, Source
from scoring.generation import Generation
from streams.archive import archive_bounds, archive_ids, archive_steps, is_archive
from streams.backfill import builder
from streams.codec import Codec
from streams.gap import Bounds
from streams.replay import Progress, replay
from streams.settings import Settings


def check_archive(folder: Path, ids: dict[str, str]) -> None:
    """Refuse a folder that is no archive, or one of another log than the topics hold."""
    if not is_archive(folder):
        raise Refused(f"{folder} was not written by `livevalue archive`: name its folder")
    if any(ids.get(topic) != id_ for topic, id_ in archive_ids(folder).items()):
        raise Refused(
            f"{folder} holds another log than the topics do (made again?): offsets of both cannot "
            "be joined. To keep the store as it is: `livevalue recover adopt --dry-run`"
        )


def needs(
    settings: Settings,
    partition: int,
    bounds: Sequence[Bounds],
    archive: Path | None,
    mark: Watermark | None,
) -> list[str]:
    """Where each source of a partition is read from; refuses where offsets are missing."""
    if mark is not None and archive is not None:
        raise Refused("a store that was begun already goes on from the log: leave --archive out")
    notes = []
    for source, (topic, held) in enumerate(zip(settings.kafka.sources, bounds, strict=True)):
        have = mark.positions[source] if mark else 0
        covered = archive_bounds(archive, topic, partition) if archive else None
        if covered is not None and covered[0] <= have < covered[1]:
            notes.append(f"{topic}: {covered[0]} to {covered[1]} from the archive")
            have = covered[1]
        # A store with a base of files begins where the log does.
        if held.start > have and not (mark and mark.base and not have):
            raise Refused(
                f"{topic}/{partition} starts at offset {held.start}, and {have} to {held.start} is "
                "not in the archive either: name the archive that holds it with --archive, or "
                "fold your own files first (`livevalue backfill FILES --store NEXT`, then "
                "`livevalue recover rebuild --store NEXT`)"
            )
        notes.append(f"{topic}: {max(have, held.start)} to {held.end} from the log")
    return notes


async def fold_again(
    settings: Settings,
    into: FeatureStore,
    served: Generation,
    archive: Path | None,
    progress: Progress | None,
) -> None:
    """Archive, then log, into `into`; publishes nothing."""
    if archive is not None:
        pipeline = builder(into, settings, served)
        await replay(archive_steps(settings, Codec(settings), archive), pipeline, progress=progress)
    await build(settings, into, served, Source([KAFKA], settings), progress=progress)
