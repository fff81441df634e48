"""Plays a log into stores in memory, in any interleaving of its sources, and reads what came out.

The one path: Codec -> merge -> Pipeline.process, as worker, replay and backfill take it.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from featurestore.backends.memory import MemoryStore
from featurestore.columns import NO_TIME
from featurestore.features import FEATURES
from featurestore.fold_settings import FoldSettings
from featurestore.state import States
from featurestore.step import TOKENS
from featurestore.store import CommitOutcome, Watermark
from featurestore.twin import Twin
from scoring.generation import Generation
from scoring.scorer import Scorer
from streams.codec import Codec, merge
from streams.logid import record_mark
from streams.pipeline import Pipeline, Positions
from streams.replay import digest_of
from streams.row import split
from streams.settings import KafkaSettings, Settings
from tests.parity.nasty import Laid
from tests.scoring.tiny import tiny

Order = Literal["clock", "random", "ahead", "ahead-reversed"]
Cut = tuple[int, list[tuple[int, int]]]  # partition, [(source, records)] of one batch


def settings(mixed: bool, partitions: int) -> Settings:
    mixed_topic = {"mixed": "events"} if mixed else {}
    return Settings(kafka=KafkaSettings(partitions=partitions, **mixed_topic))


def generation() -> Generation:
    """A sequence model with random weights, so that a carry folded otherwise shows."""
    return tiny(tokens=len(TOKENS), features=len(FEATURES), width=8, offset=20)


def cuts(log: Laid, order: Order, batch: int, seed: int) -> Iterator[Cut]:
    """Which records the next batch takes, until every source is read."""
    rng = random.Random(seed)
    left = {at: len(records) for at, records in log.items() if records}
    while left:
        p = rng.choice(sorted({p for p, _ in left}))
        sources = sorted(s for q, s in left if q == p)
        if order == "ahead":
            sources = sources[:1]
        elif order == "ahead-reversed":
            sources = sources[-1:]
        elif order == "random":
            rng.shuffle(sources)
        room, taken = batch, []
        for s in sources:
            share = min(left[p, s], room if s == sources[-1] else rng.randint(0, room))
            if not share:
                continue
            taken.append((s, share))
            room -= share
            left[p, s] -= share
            if not left[p, s]:
                del left[p, s]
        if taken:
            yield p, taken


def by_clock(log: Laid, codec: Codec, batch: int) -> Iterator[Cut]:
    """The worker's and replay's order: the source with the lowest clock comes next."""
    for p in sorted({p for p, _ in log}):
        sources = [s for q, s in log if q == p]
        at, clocks = dict.fromkeys(sources, 0), dict.fromkeys(sources, NO_TIME)
        while unread := [s for s in sources if at[s] < len(log[p, s])]:
            s = min(unread, key=lambda s: (clocks[s], s))
            records = log[p, s][at[s] : at[s] + batch]
            at[s] += len(records)
            times = codec.decode(s, p, records).batch.events["time_ms"]
            if len(times):
                clocks[s] = max(clocks[s], int(times.max()))
            yield p, [(s, len(records))]


@dataclass
class Played:
    """A store and what went into it."""

    settings: Settings
    model: Generation
    store: MemoryStore = field(default_factory=MemoryStore)
    marks: dict[int, Watermark] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    twins: dict[int, Twin] | None = None  # fed the same batches, where given

    def pipeline(self) -> Pipeline:
        scorer = Scorer(self.model, self.settings.model, self.settings.features)
        return Pipeline(self.store, scorer, self.settings)

    async def play(self, log: Laid, plan: Iterator[Cut], restart_every: int = 0) -> Played:
        """Fold batch by batch; now and then a new process takes over, from the store alone."""
        pipeline, codec = self.pipeline(), Codec(self.settings)
        tokens: dict[int, str] = {}
        at: Counter[tuple[int, int]] = Counter()
        sources = len(self.settings.kafka.sources)
        for number, (p, taken) in enumerate(plan):
            if restart_every and number % restart_every == restart_every - 1:
                pipeline, codec, tokens, self.marks = self.pipeline(), Codec(self.settings), {}, {}
            if p not in tokens:
                claim = await self.store.claim(p)
                tokens[p] = claim.token
                if claim.watermark is not None:
                    self.marks[p] = claim.watermark
            before = self.marks.get(p)
            positions = list(before.positions if before else (0,) * sources)
            marks = list(before.marks if before else ("",) * sources)
            parts = []
            for s, count in taken:
                records = log[p, s][at[p, s] : at[p, s] + count]
                at[p, s] += count
                parts.append(codec.decode(s, p, records))
                positions[s] = records[-1].offset + 1
                marks[s] = record_mark(records[-1])
            batch = merge(parts)
            rejected = [r for part in parts for r in part.rejected]
            if self.twins is not None:
                rules = FoldSettings.of(self.settings.features, self.settings.kafka.sources)
                self.twins.setdefault(p, Twin(rules)).fold(batch)
            done = await pipeline.process(
                p,
                tokens[p],
                before,
                Positions(tuple(positions), tuple(marks), "log", (False,) * sources),
                batch,
                rejected,
            )
            assert done.outcome is CommitOutcome.OK
            self.marks[p] = done.watermark
            self.counts.update(done.counts)
        return self

    # ---- what came out

    async def digest(self) -> str:
        return (await digest_of(self.store, range(self.settings.kafka.partitions))).hex()

    async def documents(self) -> dict[str, dict[str, Any]]:
        """Values and history of each user, without what names one batch."""
        found = {}
        for p in range(self.settings.kafka.partitions):
            users, _ = await self.store.scan(p, "", 1_000_000)
            for user in users:
                document = await self.store.document(p, user)
                if document is not None:
                    said = json.loads(document)
                    for name in ("revision", "previous", "cause"):
                        said.pop(name)
                    found[user] = said
        return found

    async def states(self, p: int) -> States:
        users, _ = await self.store.scan(p, "", 1_000_000)
        rows = (await self.store.load(p, users)).states
        return States.decode(users, [split(row)[0] if row else None for row in rows])


def differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """Where two documents differ: floats beyond five digits, everything else exactly."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            yield f"{where}: {sorted(a)} != {sorted(b)}"
            return
        for name in a:
            yield from differences(a[name], b[name], f"{where}.{name}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for n, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{where}[{n}]")
    elif isinstance(a, float) and isinstance(b, float):
        if abs(a - b) > 1e-3 * max(abs(a), abs(b)) + 1e-6:
            yield f"{where}: {a} != {b}"
    elif a != b:
        yield f"{where}: {a!r} != {b!r}"


def all_differences(
    ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]]
) -> Sequence[str]:
    return list(differences(ours, theirs))[:5]
