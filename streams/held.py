"""What one claim of a partition gave: the right to commit, and what is known on the strength of it.

Everything that an owner writes goes through here, compared against the watermark that it believes
in. Only OK is progress; anything else raises, and the owner forgets the whole of this and claims
again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from featurestore.columns import EventBatch
from featurestore.store import CommitOutcome, Watermark
from streams import crashpoints, sweep
from streams.emit import Parked
from streams.errors import Fenced, Stale
from streams.intake import Taken
from streams.metrics import Metrics
from streams.pipeline import Pipeline, Positions, Processed
from streams.publish import Publisher, Waiting
from streams.rollback import Rollback

log = logging.getLogger(__name__)

REFRESH_USERS = 400  # a commit


@dataclass(slots=True)
class Held:
    """One partition, claimed; forgotten as a whole."""

    partition: int
    pipeline: Pipeline
    token: str
    log_id: str
    publisher: Publisher
    metrics: Metrics
    watermark: Watermark | None
    rollback: Rollback | None = None
    seq_at_least: int = 0
    moved_s: float = 0.0  # when something was last committed, by the monotonic clock

    async def process(
        self, taken: Taken, idle: tuple[bool, ...], trails: tuple[str, ...]
    ) -> Processed:
        """Fold and commit one batch; the outcome is the caller's to `demand`."""
        return await self.pipeline.process(
            self.partition,
            self.token,
            self.watermark,
            Positions(taken.positions, taken.marks, self.log_id, idle, trails),
            taken.batch,
            taken.rejected,
            seq_at_least=self.seq_at_least,
        )

    async def refresh(
        self, users: Sequence[str], as_of_ms: int | None, cause: str, *, progress: str = ""
    ) -> Processed:
        """Commit documents of `users` anew without moving a position; raises unless OK."""
        assert self.watermark is not None
        done = await self.pipeline.refresh(
            self.partition,
            self.token,
            self.watermark,
            users,
            as_of_ms,
            cause,
            seq_at_least=self.seq_at_least,
            progress=progress,
        )
        self.demand(done)
        return done

    async def remark(self, marks: tuple[str, ...], trails: tuple[str, ...]) -> Watermark:
        """Commit other marks and trails, and nothing else; raises unless OK."""
        assert self.watermark is not None
        mark = self.watermark
        idle = mark.idle or (False,) * len(marks)
        after = Positions(mark.positions, marks, mark.log_id, idle, trails)
        done = await self.pipeline.process(
            self.partition, self.token, mark, after, EventBatch.empty(), []
        )
        self.demand(done)
        self.watermark = done.watermark
        return done.watermark

    async def watch(self) -> None:
        """A roll-back, or another writer, shows in the watermark; raises where it does."""
        loaded = await self.pipeline.store.load(self.partition, [])
        if loaded.token != self.token:
            raise Fenced(f"the token of partition {self.partition} is no longer ours")
        there, here = loaded.watermark, self.watermark
        if (there is None) != (here is None) or (
            there is not None
            and here is not None
            and (there.positions, there.identity) != (here.positions, here.identity)
        ):
            raise Stale(f"the watermark of partition {self.partition} is not what we wrote")

    def demand(self, done: Processed) -> None:
        """Only OK is progress; everything else is the one way back."""
        outcome = "MOVED" if done.outcome is None else str(done.outcome)
        self.metrics.commits.labels(outcome).inc()
        if done.outcome is CommitOutcome.OK:
            return
        if done.outcome is CommitOutcome.FENCED:
            raise Fenced(f"another worker claimed partition {self.partition}")
        raise Stale(f"partition {self.partition}: {outcome}, the store is not where we thought")

    def advance(self, done: Processed, parked: Sequence[Parked] = ()) -> None:
        """The commit stands: pass on what it has to say.

        While a roll-back is being made good nothing is put, so that nothing waits in the publisher
        and neither back-pressure nor an owner's end waits for it.
        """
        self.watermark = mark = done.watermark
        self.moved_s = time.monotonic()
        if self.rollback is not None:
            self.rollback.saw(done.updates, parked)
            return
        self.publisher.put(Waiting.of(mark, done.updates, parked))

    async def make_good(self, roll: Rollback, closing: Callable[[], bool]) -> None:
        """Publish once each user touched since, under a seq beyond both.

        All pages are committed before any is published, and the last transaction alone says how far
        it is published: a crash in between finds the published identity still missing from the
        outbox and does all of it again, under revisions beyond those that were said. So does
        whoever comes next where the partition is `closing`.
        """
        users = sorted(roll.users)
        waiting = []
        progress = sweep.PENDING if roll.everybody else ""
        for low in range(0, max(1, len(users)), REFRESH_USERS):
            if closing():
                return
            done = await self.refresh(
                users[low : low + REFRESH_USERS], None, "recover", progress=progress
            )
            self.watermark = mark = done.watermark
            waiting.append(replace(Waiting.of(mark, done.updates), more=True))
            self.moved_s = time.monotonic()
            crashpoints.passing("make_good_page")
        waiting[-1].parked += roll.parked
        waiting[-1].more = False
        # A store that lacks this may be another one that went on: whom it names is not all.
        waiting[-1].sweeps = True
        self.rollback = None
        for commit in waiting:
            self.publisher.put(commit)
        log.warning(
            "roll-back made good",
            extra={
                "partition": self.partition,
                "users": len(users),
                "everybody": roll.everybody,
                "seq": self.watermark.identity.seq if self.watermark else 0,
            },
        )
