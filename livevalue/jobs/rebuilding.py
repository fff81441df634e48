"""recover rebuild: fold archive and log again into a store of its own.

The archive is exact by offsets, so the log goes on where it ends. A topic that was made again since
is another log: the archive is then all there is of the old one, and the new one is read from its
start. Whether archive and log together reach from offset 0 to the log's end is looked at before
anything is folded.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
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
from streams.replay import Progress, Step, replay
from streams.settings import Settings


def made_again(folder: Path, ids: dict[str, str]) -> frozenset[str]:
    """Topics that are others now than those of the archive; refuses what is no archive of ours."""
    if not is_archive(folder):
        raise Refused(f"{folder} was not written by `livevalue archive`: name its folder")
    there = archive_ids(folder)
    if there.keys() != ids.keys():
        raise Refused(
            f"{folder} holds topics {', '.join(sorted(there))}, the settings name "
            f"{', '.join(sorted(ids))}: name the archive of these, or set LIVEVALUE_KAFKA__BROWSE, "
            "__PURCHASE and __INTERACTION (or __MIXED) to those"
        )
    return frozenset(topic for topic, id_ in there.items() if ids[topic] != id_)


def needs(
    settings: Settings,
    partition: int,
    bounds: Sequence[Bounds],
    archive: Path | None,
    mark: Watermark | None,
    again: frozenset[str] = frozenset(),
) -> list[str]:
    """Where each source of a partition is read from; refuses where offsets are missing.

    again: topics that were made again since they were archived.
    """
    if mark is not None and archive is not None:
        raise Refused("a store that was begun already goes on from the log: leave --archive out")
    notes = []
    for source, (topic, held) in enumerate(zip(settings.kafka.sources, bounds, strict=True)):
        have = mark.positions[source] if mark else 0
        covered = archive_bounds(archive, topic, partition) if archive else None
        if covered is not None and covered[0] <= have < covered[1]:
            notes.append(f"{topic}: {covered[0]} to {covered[1]} from the archive")
            if topic in again:
                notes.append(
                    f"{topic} was made again since: what it took after {covered[1]} and before "
                    "that is lost"
                )
            else:
                have = covered[1]
        elif covered is not None and topic in again:
            raise Refused(
                f"{archive} holds {topic}/{partition} from offset {covered[0]} on, and the topic "
                f"was made again since: 0 to {covered[0]} is nowhere. Fold your own files first "
                "(`livevalue backfill FILES --store NEXT`, then `livevalue recover rebuild --store "
                "NEXT`)"
            )
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
    again: frozenset[str],
    progress: Progress | None,
) -> None:
    """Archive, then log, into `into`; publishes nothing."""
    if archive is not None:
        pipeline = builder(into, settings, served)
        steps = archive_steps(settings, Codec(settings), archive)
        made_anew = [topic in again for topic in settings.kafka.sources]
        await replay(_standing(steps, made_anew), pipeline, progress=progress)
    await build(settings, into, served, Source([KAFKA], settings), progress=progress)


async def _standing(steps: AsyncIterator[Step], made_anew: Sequence[bool]) -> AsyncIterator[Step]:
    """Steps that move no position in topics made anew: none of what they fold stands in these."""
    async for step in steps:
        at = zip(step.after.positions, made_anew, strict=True)
        positions = tuple(0 if anew else position for position, anew in at)
        yield replace(step, after=replace(step.after, positions=positions))
