"""The sweep: publish every user of a store again, in paced pages, after it became the active one.

First every user whom the store knows; then whoever has a document of whom it knows nothing. Such a
user is known to the store that served before alone, since one of the two was built from other
files: his document goes, with a tombstone.

How far it has come is kept in the watermark's `progress`, in the same atomic commit as the
documents, so that a roll-back of Redis redoes exactly what it undid.
"""

from __future__ import annotations

import json

from featurestore.store import FeatureStore, Watermark
from streams.pipeline import Pipeline, Processed, sweeping

PAGE = 400  # users a commit

PENDING = json.dumps({"sweep": ""})  # a store that was built aside: publish all when active
DONE = json.dumps({"sweep": None})


def pending(watermark: Watermark) -> bool:
    """Whether a sweep has to begin or to go on.

    >>> json.loads(PENDING)["sweep"]
    ''
    """
    return sweeping(watermark.progress)


async def sweep_page(
    pipeline: Pipeline,
    store: FeatureStore,
    partition: int,
    token: str,
    watermark: Watermark,
    as_of_ms: int | None,
) -> Processed:
    """Publish the next page and move the cursor, in one commit."""
    told = json.loads(watermark.progress)
    if told.get("documents"):
        users, after = await store.scan_documents(partition, told["sweep"], PAGE)
        users = await _unknown(store, partition, users)
        progress = _at(after, documents=True) if after else DONE
    else:
        users, after = await store.scan(partition, told["sweep"], PAGE)
        progress = _at(after, documents=not after)
    return await pipeline.refresh(
        partition, token, watermark, users, as_of_ms, "generation", progress=progress
    )


def _at(cursor: str, *, documents: bool) -> str:
    return json.dumps({"sweep": cursor, **({"documents": True} if documents else {})})


async def _unknown(store: FeatureStore, partition: int, users: list[str]) -> list[str]:
    """Those of whom the store knows nothing."""
    states = (await store.load(partition, users)).states
    return [user for user, state in zip(users, states, strict=True) if state is None]
