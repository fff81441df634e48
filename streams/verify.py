"""Verify: does the live store hold what the log says?

For each page of users, read atomically with the watermark they belong to, the log is replayed up
to exactly that watermark into a scratch store, and user by user the two are compared: exact
fields (identities, counts, money) bit by bit, floats, carries and documents within tolerances
that `TOLERANCES` states. The store may move meanwhile: every page has its own watermark, and
the replay only ever goes forward.

Two exceptions of law 4 are named, not hidden: users whose tail reached its cap, and users with an
event behind the frontier from a source that had been idle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featurestore.backends.memory import MemoryStore
from featurestore.digest import exact_fields
from featurestore.state import States
from featurestore.store import FeatureStore, Watermark
from scoring.generation import Generation
from scoring.scorer import Scorer
from streams.codec import Codec
from streams.kafkalog import KafkaLog
from streams.pipeline import Pipeline, split
from streams.replay import Replayed, kafka_steps, replay
from streams.settings import Settings

_PAGE = 1000
TOLERANCES = {
    "features": 1e-9,  # relative; the fold is the same code, sums may differ in their order
    "carry": 1e-4,  # absolute; batch sizes round float32 products differently
    "document": 1e-3,  # relative; documents carry 5 significant digits
}


@dataclass(slots=True)
class Verified:
    """What `livevalue verify` found."""

    users: int = 0
    different: int = 0
    excepted: int = 0
    first_differences: list[dict[str, Any]] = field(default_factory=list)

    def add(self, partition: int, user: str, what: Sequence[str]) -> None:
        """Count one user's differences; the first 20 are kept in words."""
        self.users += 1
        if not what:
            return
        self.different += 1
        if len(self.first_differences) < 20:
            self.first_differences.append(
                {"partition": partition, "user_id": user, "differs": list(what)}
            )


async def verify(
    settings: Settings,
    store: FeatureStore,
    generation: Generation,
    partitions: Sequence[int],
    *,
    sample: int | None = None,
    scratch: Pipeline | None = None,
    progress: Callable[[int], None] | None = None,
) -> Verified:
    """Replay the log up to each page's watermark and compare.

    sample: at most this many users a partition. scratch: into a memory store that holds the
    store's base of files already, where it has one.
    """
    found = Verified()
    codec = Codec(settings)
    scorer = Scorer(generation, settings.model, settings.features)
    async with KafkaLog(settings.kafka) as log:
        for partition in partitions:
            mirror_of = scratch or Pipeline(
                MemoryStore("verify"), scorer, settings, publishes=False
            )
            done = Replayed()
            mark = (await mirror_of.store.load(partition, [])).watermark
            if mark is not None:
                done.watermarks[partition] = mark
            cursor, seen = "", 0
            while True:
                page, cursor = await store.scan(partition, cursor, _PAGE)
                page = page[: sample - seen] if sample is not None else page
                live = await store.load(partition, page)
                if live.watermark is None:
                    break
                await _catch_up(log, codec, mirror_of, partition, done, live.watermark)
                mirror = await mirror_of.store.load(partition, page)
                documents = [await store.document(partition, user) for user in page]
                _compare(
                    found, scorer, partition, page, live.states, mirror.states, documents
                )
                seen += len(page)
                if progress:
                    progress(found.users)
                if not cursor or (sample is not None and seen >= sample):
                    break
    return found


async def _catch_up(
    log: KafkaLog,
    codec: Codec,
    scratch: Pipeline,
    partition: int,
    done: Replayed,
    target: Watermark,
) -> None:
    before = done.watermarks.get(partition)
    steps = kafka_steps(log, codec, partition, before, target.positions)
    await replay(steps, scratch, into=done)


def _compare(
    found: Verified,
    scorer: Scorer,
    partition: int,
    users: Sequence[str],
    live: Sequence[bytes | None],
    mirror: Sequence[bytes | None],
    documents: Sequence[bytes | None],
) -> None:
    missing = [u for u, a, b in zip(users, live, mirror, strict=True) if (a is None) != (b is None)]
    for user in missing:
        found.add(partition, user, ["only on one side"])
    both = [
        (u, split(a), split(b), d)
        for u, a, b, d in zip(users, live, mirror, documents, strict=True)
        if a is not None and b is not None
    ]
    if not both:
        return
    names = [u for u, _, _, _ in both]
    ours = States.decode(names, [a[0] for _, a, _, _ in both])
    theirs = States.decode(names, [b[0] for _, _, b, _ in both])
    _, our_head, last = scorer.unpack([a[1] for _, a, _, _ in both])
    _, their_head, _ = scorer.unpack([b[1] for _, _, b, _ in both])
    exact_a, exact_b = exact_fields(ours), exact_fields(theirs)
    carry = np.abs(our_head - their_head).max(axis=1, initial=0.0) > TOLERANCES["carry"]
    prediction = scorer.rescore(theirs, their_head, last["as_of_ms"])
    for i, name in enumerate(names):
        what = [f for f in exact_a.dtype.names or () if exact_a[f][i] != exact_b[f][i]]
        if carry[i]:
            what.append("carry")
        document = both[i][3]
        if document is not None:
            what += _document_differs(json.loads(document), prediction.expected[i, 0])
        found.add(partition, name, what)


def _document_differs(document: dict[str, Any], expected: np.ndarray[Any, Any]) -> list[str]:
    values = [v["expected"] for v in document["values"].values()]
    close = np.isclose(values, expected, rtol=TOLERANCES["document"], atol=1e-6)
    return [f"{name}.expected" for name, ok in zip(document["values"], close, strict=True) if not ok]
