"""Taking a store over: from aside to active, at equal positions, and back by the same move.

Whatever changes the past (another generation, feature or value table) is a store built aside by a
builder (streams.backfill). Then `lv:{p}:next` names it, and the partition's owner takes it over:
it fences the builder by a claim of its own, folds what the builder lacks, and when both stand at
equal positions one FUNCTION flips. Nobody publishes from two folds, since readers' keys are
written by the active store only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from featurestore.store import CommitOutcome, FeatureStore, Watermark
from scoring.generation import Generation
from streams import crashpoints
from streams.backfill import builder
from streams.codec import Codec
from streams.errors import Stale
from streams.kafkalog import KafkaLog
from streams.pipeline import Pipeline
from streams.replay import Replayed, kafka_steps, replay_claimed
from streams.settings import Settings

FindGeneration = Callable[[str], Awaitable[Generation]]


class Takeover:
    """One partition's move from the active store to another."""

    def __init__(self, pipeline: Pipeline, partition: int, token: str, done: Replayed) -> None:
        self.pipeline = pipeline  # into the other store
        self.partition = partition
        self.token = token  # ours in the other store
        self._done = done

    @classmethod
    async def begin(
        cls, other: FeatureStore, settings: Settings, partition: int, find: FindGeneration
    ) -> Takeover:
        """Claim the other store, which fences its builder, and load its generation.

        Raises Stale where the other store holds nothing of the partition, StoreMismatch where
        it was built with other settings than ours.
        """
        claim = await other.claim(partition)
        crashpoints.passing("takeover_claimed")
        if claim.watermark is None:
            raise Stale(
                f"store {other.name!r} holds nothing of partition {partition}: build it first "
                f"(`livevalue backfill kafka --store {other.name}`)"
            )
        pipeline = builder(other, settings, await find(claim.watermark.generation))
        await pipeline.fingerprint.check(other, claim.watermark)
        done = Replayed(watermarks={partition: claim.watermark})
        return cls(pipeline, partition, claim.token, done)

    @property
    def watermark(self) -> Watermark:
        """Where the other store stands."""
        return self._done.watermarks[self.partition]

    async def catch_up(self, log: KafkaLog, codec: Codec, target: Watermark) -> None:
        """Fold into the other store what the active one, at `target`, has folded more.

        Raises Stale where the other store stands beyond `target`: it can then only wait.
        """
        before = self.watermark
        if any(b > t for b, t in zip(before.positions, target.positions, strict=True)):
            raise Stale(
                f"store {self.pipeline.store.name!r} stands beyond the active one in partition "
                f"{self.partition}: it is taken over when the worker has passed it"
            )
        steps = kafka_steps(
            log,
            codec,
            self.partition,
            before,
            target.positions,
            log_id=target.log_id,
            trails=target.trails,
        )
        await replay_claimed(steps, self.pipeline, {self.partition: self.token}, self._done)

    async def flip(self, active: FeatureStore, token: str) -> CommitOutcome:
        """Make the other store the active one; the caller holds the partition still."""
        return await active.flip(self.partition, token, self.pipeline.store.name, self.token)
