"""Replay: a log through `Pipeline.process` again, into a store of its own.

The same log gives the same values, live or replayed: lateness, order and duplicates are decided
by the log alone. `Steps` are the unit: decoded events of one partition and the positions at
which they end. They come from Kafka (`kafka_steps`) or from files (`file_steps`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from featurestore.backends.memory import MemoryStore
from featurestore.columns import NO_TIME, EventBatch
from featurestore.digest import Digest
from featurestore.state import States
from featurestore.store import FeatureStore, Watermark
from scoring.generation import Generation
from scoring.scorer import Scorer
from streams import crashpoints
from streams.codec import Codec, merge
from streams.deadletter import Rejected
from streams.errors import Stale
from streams.kafkalog import KafkaLog
from streams.log import FileLog
from streams.logid import record_mark
from streams.pipeline import Pipeline, Positions
from streams.row import split
from streams.settings import Settings

Progress = Callable[[int, int | None], None]  # events done, events in all where known

_PAGE = 2000  # users a page when walking a store


@dataclass(slots=True)
class Step:
    """Decoded events of one partition and where they end."""

    partition: int
    batch: EventBatch
    rejected: list[Rejected]
    after: Positions


@dataclass(slots=True)
class Replayed:
    """What a replay or backfill did."""

    events: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    watermarks: dict[int, Watermark] = field(default_factory=dict)

    @property
    def applied(self) -> int:
        """Events folded, late money included."""
        return self.counts["applied"] + self.counts["applied_late"]

    @property
    def rejected(self) -> int:
        """Records that went, or would go, to the dead letters."""
        parked = self.counts["late"] + self.counts["conflict"] + self.counts["future"]
        return parked + sum(n for k, n in self.counts.items() if k.startswith("rejected_"))

    def as_json(self) -> dict[str, int]:
        """The counts that `livevalue replay --json` holds."""
        return {
            "events": self.events,
            "applied": self.applied,
            "rejected": self.rejected,
            "late": self.counts["late"],
            "duplicates": self.counts["duplicate"],
        }


async def kafka_steps(
    log: KafkaLog,
    codec: Codec,
    partition: int,
    before: Watermark | None,
    end: Sequence[int],
    *,
    start: Sequence[int] | None = None,
    log_id: str = "",
    trails: tuple[str, ...] = (),
    size: int = 2000,
) -> AsyncIterator[Step]:
    """Steps of one partition up to `end`, from `start`, the watermark or the log's beginning."""
    sources = len(end)
    if start is None:
        start = before.positions if before else (0,) * sources
        if before is None or before.base:
            # Behind a base of files the log may begin anywhere.
            begins = await log.starts(partition)
            start = tuple(p or b for p, b in zip(start, begins, strict=True))
    clocks = list(before.clocks if before else (NO_TIME,) * sources)
    position = list(start)
    marks = list(before.marks if before else ("",) * sources)
    idle = before.idle if before and before.idle else (False,) * sources
    async for piece in log.slices(partition, start, end, clocks, size):
        decoded = codec.decode(piece.source, partition, piece.records)
        position[piece.source] = piece.after
        if piece.records:
            marks[piece.source] = record_mark(piece.records[-1])
        if decoded.batch.size:
            newest = int(decoded.batch.events["time_ms"].max())
            clocks[piece.source] = max(clocks[piece.source], newest)
        yield Step(
            partition,
            merge([decoded]),
            decoded.rejected,
            Positions(tuple(position), tuple(marks), log_id, idle, trails),
        )
    if before is not None and before.base and tuple(position) == tuple(start) != before.positions:
        # A base of files over a log that holds nothing any more: it stands at the log's end.
        yield Step(
            partition,
            EventBatch.empty(),
            [],
            Positions(tuple(position), tuple(marks), log_id, idle, trails),
        )


async def file_steps(log: FileLog, partitions: int, sources: int, size: int) -> AsyncIterator[Step]:
    """Steps of event logs in files; positions stay 0, since files are no Kafka log."""
    nowhere = Positions((0,) * sources, ("",) * sources, "", (False,) * sources)
    for partition, batch in log.batches(partitions, size):
        yield Step(partition, batch, [], nowhere)


async def replay(
    steps: AsyncIterator[Step],
    pipeline: Pipeline,
    *,
    into: Replayed | None = None,
    progress: Progress | None = None,
    total: int | None = None,
) -> Replayed:
    """Fold and score `steps` into the pipeline's store; changes nothing else.

    Claims each partition when its first step comes. Raises Stale where somebody else writes to
    the same store.
    """
    return await replay_claimed(steps, pipeline, {}, into or Replayed(), progress, total)


async def replay_claimed(
    steps: AsyncIterator[Step],
    pipeline: Pipeline,
    tokens: dict[int, str],
    done: Replayed,
    progress: Progress | None = None,
    total: int | None = None,
) -> Replayed:
    """`replay` for a caller who holds some partitions already, by `tokens`."""
    async for step in steps:
        if step.partition not in tokens:
            claim = await pipeline.store.claim(step.partition)
            tokens[step.partition] = claim.token
            if claim.watermark is not None:
                done.watermarks[step.partition] = claim.watermark
        await _fold(step, pipeline, tokens[step.partition], done)
        if progress:
            progress(done.events, total)
    return done


async def _fold(step: Step, pipeline: Pipeline, token: str, done: Replayed) -> None:
    before = done.watermarks.get(step.partition)
    result = await pipeline.process(
        step.partition,
        token,
        before,
        step.after,
        step.batch,
        step.rejected,
        capped=False,
    )
    if result.outcome != "OK":
        raise Stale(
            f"partition {step.partition} of store {pipeline.store.name!r} was moved by another "
            f"writer ({result.outcome}): stop it, or name another store"
        )
    crashpoints.passing("backfill_step")
    done.watermarks[step.partition] = result.watermark
    done.events += step.batch.size + len(step.rejected)
    done.counts.update(result.counts)


def scratch(settings: Settings, generation: Generation) -> Pipeline:
    """A pipeline into a memory store of its own, publishing nothing."""
    scorer = Scorer(generation, settings.model, settings.features)
    return Pipeline(MemoryStore("scratch"), scorer, settings, publishes=False)


async def digest_of(
    store: FeatureStore, partitions: Iterable[int], progress: Progress | None = None
) -> Digest:
    """Digest over the exact fields of every user that the store holds."""
    digest = Digest()
    users = 0
    for partition in partitions:
        cursor = ""
        seen: set[str] = set()  # a scan may show a user twice while the keyspace grows
        while True:
            page, cursor = await store.scan(partition, cursor, _PAGE)
            page = [user for user in dict.fromkeys(page) if user not in seen]
            seen.update(page)
            loaded = await store.load(partition, page)
            kept = [(u, split(s)[0]) for u, s in zip(page, loaded.states, strict=True) if s]
            digest.add(States.decode([u for u, _ in kept], [s for _, s in kept]))
            users += len(kept)
            if progress:
                progress(users, None)
            if not cursor:
                break
    return digest
