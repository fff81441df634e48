"""The sweep: publish every user of a store again, in paced pages, after it became the active one.

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
    cursor = json.loads(watermark.progress)["sweep"]
    users, after = await store.scan(partition, cursor, PAGE)
    progress = json.dumps({"sweep": after}) if after else DONE
    return await pipeline.refresh(
        partition, token, watermark, users, as_of_ms, "generation", progress=progress
    )
