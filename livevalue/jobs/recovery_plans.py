"""What `recover` does with one partition, decided from what was found there; nothing is done here.

adopt keeps the store and goes on where the log is now; wipe begins anew at the log's start; serve
lets a store that was built aside serve. Pure: `livevalue.jobs.recovering` looks and carries out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from featurestore.columns import NO_TIME
from featurestore.store import Identity, Watermark
from featurestore.wording import counted
from livevalue.output import Refused
from streams import sweep
from streams.emit import Published
from streams.fingerprint import Fingerprint
from streams.gap import Bounds
from streams.logid import cut_at
from streams.settings import Settings


@dataclass(frozen=True, slots=True)
class Found:
    """What there is of one partition."""

    watermark: Watermark | None
    half_wiped: bool
    published: Published | None
    bounds: tuple[Bounds, ...]  # of each source
    scores: Bounds
    log_id: str
    rewritten: tuple[bool, ...]  # the record before the position is not the one that was folded

    @property
    def seq(self) -> int:
        """The highest number of a commit that is known."""
        held = self.watermark.identity.seq if self.watermark else 0
        return max(held, self.published.identity.seq if self.published else 0)

    @property
    def foreign(self) -> list[str]:
        """A note where no topic is one that the store was folded from."""
        was = self.watermark.log_id if self.watermark else ""
        if not was or not set(was.split(",")).isdisjoint(self.log_id.split(",")):
            return []
        return [
            "no topic is one that the store was folded from: is it the Redis of this deployment? "
            "If not, change nothing here, and set LIVEVALUE_STORE__URL"
        ]

    @property
    def untouched(self) -> bool:
        """Nothing was ever folded or published: a first start needs no recovery."""
        begun = self.watermark or self.published or self.half_wiped or self.scores.end
        return not begun and not any(b.start for b in self.bounds)

    def reachable(self, position: Sequence[int]) -> Identity | None:
        """The published identity, if a fold from `position` should publish as it goes.

        None where what was published lies ahead in this very log: then the fold is to reach it
        in silence, as after a roll-back of Redis.
        """
        said = self.published
        if said is None:
            return None
        ahead = any(p < to for p, to in zip(position, said.positions, strict=True))
        there = all(to <= b.end for to, b in zip(said.positions, self.bounds, strict=True))
        return None if said.log_id == self.log_id and ahead and there else said.identity


@dataclass(slots=True)
class Plan:
    """What is done with one partition. watermark None: nothing."""

    partition: int
    watermark: Watermark | None = None
    published: Identity | None = None
    before: tuple[int, ...] | None = None
    notes: list[str] = field(default_factory=list)

    def as_json(self, store: str) -> dict[str, Any]:
        """One row of `plan`."""
        mark = self.watermark
        return {
            "partition": self.partition,
            "store": store,
            "changes": mark is not None,
            "from": None if self.before is None else list(self.before),
            "to": None if mark is None else list(mark.positions),
            "seq": None if mark is None else mark.identity.seq,
            "notes": self.notes,
        }


def adopt(settings: Settings, partition: int, found: Found) -> Plan:
    """Keep the store; where a topic was made again or cut, go on where it is now."""
    mark, names = found.watermark, settings.kafka.sources
    plan = Plan(partition, before=mark.positions if mark else None)
    if mark is None:
        if not found.untouched:
            raise Refused(
                f"the store holds nothing of partition {partition}, so there is nothing to keep: "
                "`livevalue recover rebuild --dry-run` or `livevalue recover wipe --dry-run`"
            )
        plan.notes.append("nothing was folded yet, nothing to do")
        return plan
    if len(mark.positions) != len(names):
        raise Refused(
            f"the store was folded from {counted(len(mark.positions), 'topic')}, the settings name "
            f"{len(names)}: set them back, or build a store aside (`livevalue backfill --store`)"
        )
    plan.notes += found.foreign
    known = mark.log_id.split(",") if mark.log_id else [""] * len(names)
    positions, marks = list(mark.positions), list(mark.marks or ("",) * len(names))
    for s, (name, held, id_) in enumerate(
        zip(names, found.bounds, found.log_id.split(","), strict=True)
    ):
        if known[s] not in ("", id_):
            positions[s], marks[s] = held.start, ""
            plan.notes.append(f"{name} was made again: read from its start, {held.start}")
        elif positions[s] < held.start and not (mark.base and positions[s] == 0):
            lost = held.start - positions[s]
            positions[s], marks[s] = held.start, ""
            gone = counted(lost, "position that was", "positions that were")
            plan.notes.append(f"{name} has lost {gone} never folded: skipped")
        elif (cut := cut_at(marks[s])) is not None:
            positions[s], marks[s] = max(cut, held.start), ""
            plan.notes.append(f"{name} was cut at {cut}: goes on from there")
        elif positions[s] > held.end:
            positions[s], marks[s] = held.end, ""
            plan.notes.append(f"{name} was cut: goes on at its end, {held.end}")
        elif found.rewritten[s]:
            marks[s] = ""
            plan.notes.append(
                f"{name} was cut and written on: goes on at {positions[s]} all the same, and what "
                "it holds now of before is not read (`livevalue recover rebuild` reads it)"
            )
    if not plan.notes:
        plan.notes.append("the log is the one that was folded, nothing to do")
        return plan
    plan.watermark = replace(
        mark,
        positions=tuple(positions),
        marks=tuple(marks),
        trails=(),
        log_id=found.log_id,
        identity=Identity(found.seq, ""),
        progress=sweep.PENDING,
    )
    plan.published = found.published.identity if found.published else None
    plan.notes.append("events that the store knows by their id are duplicates, not counted twice")
    return plan


def wipe(settings: Settings, partition: int, found: Found, generation: str) -> Plan:
    """Begin anew at the log's start."""
    mark, count = found.watermark, len(settings.kafka.sources)
    plan = Plan(partition, before=mark.positions if mark else None)
    if found.untouched:
        plan.notes.append("nothing was folded yet, nothing to do")
        return plan
    plan.notes += found.foreign
    starts = tuple(b.start for b in found.bounds)
    plan.watermark = Watermark(
        positions=starts,
        clocks=(NO_TIME,) * count,
        identity=Identity(found.seq, ""),
        log_id=found.log_id,
        marks=("",) * count,
        fingerprint=Fingerprint(settings, generation).text,
        generation=generation,
        idle=(False,) * count,
    )
    plan.published = found.reachable(starts)
    plan.notes.append("states, documents and ranking are deleted")
    if mark is not None and mark.base:
        plan.notes.append("what was folded from files before the log is lost")
    if any(starts):
        plan.notes.append(
            "the log's beginning is gone: users without a record in it keep their last value on "
            f"{settings.kafka.scores}"
        )
    if found.published is not None and plan.published is None:
        plan.notes.append(
            f"in silence up to {list(found.published.positions)}, then each user once"
        )
    return plan


def serve(settings: Settings, partition: int, found: Found, generation: str) -> Plan:
    """Let a store that was built aside serve, and publish all of it."""
    built = found.watermark
    if built is None:  # not a record in the log: begun, so that all partitions are of one store
        return wipe(settings, partition, found, generation)
    return Plan(
        partition,
        replace(
            built,
            log_id=found.log_id,
            identity=Identity(found.seq, ""),
            progress=sweep.PENDING,
        ),
        found.reachable(built.positions),
    )
