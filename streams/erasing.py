"""An erasure reaches the stores that do not serve as well, before it is committed.

They meet the erase record themselves once somebody feeds them; until then nothing of the user is
to lie there. A marker may come early: it drops what lies before it, in whatever order it comes. So
each state is replaced by one that holds the marker alone, if it is still as it was read; what
somebody has written meanwhile is left to whoever writes there, who reads the erase record, too.

A user who has records after the erasure in such a store is left to that store's own reading: what
remains of him needs that store's carry. A state that cannot be decoded is replaced, as it is to be
forgotten anyway. A store that is being dropped is passed over, and trouble with one is logged: the
store that serves must not stand still for it. Only a Redis that is away is raised, to try again.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import islice

from featurestore.clock import Clocks
from featurestore.columns import Erase, EventBatch
from featurestore.errors import StateFormatError, StoreError, StoreHalfDone
from featurestore.fold import FoldSettings, fold
from featurestore.state import States
from featurestore.store import FeatureStore
from streams.row import join, split

log = logging.getLogger(__name__)

_USERS = 100  # a call: a state with all its caps full takes some 350 kB


async def forget_elsewhere(
    store: FeatureStore, partition: int, batch: EventBatch, settings: FoldSettings
) -> None:
    """Erase the batch's erased users in every store of the partition that does not serve.

    Raises StoreUnavailable.
    """
    erases = sorted(batch.erases, key=lambda erase: erase.record_ms)
    last = {batch.users[erase.user]: erase for erase in erases}
    for name in await store.others(partition):
        users = iter(last)
        while page := list(islice(users, _USERS)):
            try:
                await _forget(store.sibling(name), partition, {u: last[u] for u in page}, settings)
            except StoreHalfDone:
                break  # it is going away
            except StoreError as error:
                log.error(
                    "not erased in a store that does not serve: drop it",
                    extra={"partition": partition, "store": name, "error": str(error)},
                )
                break


async def _forget(
    store: FeatureStore, partition: int, erases: dict[str, Erase], settings: FoldSettings
) -> None:
    rows = (await store.load(partition, list(erases))).states
    held = [(user, row) for user, row in zip(erases, rows, strict=True) if row is not None]
    states = States.concat([_decoded(*one) for one in held]) if held else States.empty([])
    only = replace(
        EventBatch.empty(),
        users=states.users,
        erases=[replace(erases[user], user=i) for i, user in enumerate(states.users)],
    )
    folded = fold(states, only, Clocks.start(len(settings.lateness_ms)), settings)
    blobs = folded.states.encode()
    # Without a carry: of whatever generation that store is, it starts anew.
    gone = [(*held[i], join(blobs[i], b"")) for i in folded.erased]
    if gone:
        await store.forget(partition, gone)


def _decoded(user: str, row: bytes) -> States:
    """One user's state; an empty one where it is damaged."""
    try:
        return States.decode([user], [split(row)[0]])
    except StateFormatError:
        return States.empty([user])
