"""Between a transaction and its trim: the store belongs to another by then, or does not answer.

Each time all that is committed stands in one transaction, and nothing arrives after it: no later
commit could notice, or trim, in the place of what is tested.
"""

from __future__ import annotations

import pytest

from featurestore.backends.memory import MemoryStore
from featurestore.errors import StoreUnavailable
from featurestore.store import Identity
from livevalue.embedded import Stack
from streams import upkeep
from streams.errors import Fenced
from tests.streams.owning import CLEAN, Owning, one_partition


class Contested(MemoryStore):
    """A store that somebody else claims just before the first trim."""

    trims = 0

    async def trim(self, partition: int, token: str, published: Identity) -> bool:
        """Trim, or refuse as the token is another by now."""
        self.trims += 1
        if self.trims == 1:
            await self.claim(partition)
        return await super().trim(partition, token, published)


async def test_an_owner_whose_trim_is_refused_claims_again_without_waiting_for_the_watch(
    stack: Stack, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_WATCH_S", 3600.0)
    async with Owning(one_partition(stack.bootstrap, topic_prefix), as_live=True) as owning:
        owning.store = Contested("main", owning.backing)
        await owning.send(40)
        owner = owning.own()
        fenced = owning.metrics.irregular.labels(Fenced.__name__)
        await owning.until(lambda: fenced._value.get() == 1, 5.0)
        await owning.until(lambda: owner.ready, 5.0)
        assert await owning.audit() == CLEAN


class Away(MemoryStore):
    """A store that does not answer the next trim where it is `away`."""

    away = False

    async def trim(self, partition: int, token: str, published: Identity) -> bool:
        """Trim, or be away once."""
        if self.away:
            self.away = False
            raise StoreUnavailable("does not answer")
        return await super().trim(partition, token, published)


async def test_a_claim_trims_what_was_published_before_the_store_went_away(
    stack: Stack, topic_prefix: str
) -> None:
    async with Owning(one_partition(stack.bootstrap, topic_prefix)) as owning:
        owning.store = store = Away("main", owning.backing)
        first = owning.own()
        await owning.send(40)
        await owning.settle()
        await first.close(drain=True)

        store.away = True
        await owning.send(20)
        owner = owning.own()
        gone = owning.metrics.irregular.labels(StoreUnavailable.__name__)
        await owning.until(lambda: gone._value.get() == 1)
        await owning.until(lambda: owner.ready)
        # As after every trim. Else a published record that is lost now would not be missed.
        mark = (await store.load(0, [])).watermark
        assert mark is not None and mark.published == mark.identity
        outbox = owning.backing.partition(0).outbox
        assert [entry.identity for entry in outbox] == [mark.identity]
        assert await owning.audit() == CLEAN
