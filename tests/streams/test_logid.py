"""A lost store is no first start, and a log that ends before what was published is another log."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from kafka import KafkaAdminClient, TopicPartition  # type: ignore[import-untyped]

from featurestore.errors import StoreLost
from featurestore.store import Identity, Watermark
from livevalue.embedded import Stack
from streams import broker
from streams.emit import Published
from streams.gap import Bounds
from streams.logid import check_store
from tests.streams.owning import Owning, one_partition

PUBLISHED = Published(Identity(7, "w"), (3, 0), "a")
HELD = Watermark((3, 0), (0, 0), Identity(7, "w"), "a", ("", ""), "f", "g")
WHOLE, EMPTY, SPOKEN = Bounds(0, 9), Bounds(0, 0), Bounds(0, 2)
LATER = {
    "published": (PUBLISHED, [WHOLE, WHOLE], EMPTY, "commit 7 of it was published"),
    "said": (None, [WHOLE, WHOLE], SPOKEN, "scores topic holds values"),
    "compacted away": (None, [WHOLE, WHOLE], Bounds(2, 2), "scores topic holds values"),
    "cut": (None, [WHOLE, Bounds(4, 9)], EMPTY, "log no longer starts at offset 0"),
    "deleted": (None, [Bounds(9, 9), WHOLE], EMPTY, "log no longer starts at offset 0"),
}


@pytest.fixture
async def owning(stack: Stack, topic_prefix: str) -> AsyncIterator[Owning]:
    async with Owning(one_partition(stack.bootstrap, topic_prefix)) as made:
        yield made


@pytest.mark.parametrize("life", list(LATER))
def test_a_store_of_nothing_is_a_first_start_only_where_nothing_tells_of_an_earlier_life(
    life: str,
) -> None:
    published, bounds, scores, why = LATER[life]
    with pytest.raises(StoreLost, match=f"partition 1, yet .*{why}") as refused:
        check_store(1, None, published, bounds, scores)
    for way in ("rebuild", "wipe"):
        assert f"`livevalue recover {way} --dry-run`" in str(refused.value)
    # A store that holds something is no lost one; nor is a first start on a log that is whole.
    check_store(1, HELD, published, bounds, scores)
    check_store(1, None, None, [WHOLE, EMPTY], EMPTY)


async def test_a_claim_of_nothing_halts_where_scores_holds_values(owning: Owning) -> None:
    kafka = owning.settings.kafka
    await owning.producer.send_and_wait(kafka.scores, b"{}", key=b"u1", partition=0)
    await owning.send(20)
    await halts(owning, "scores topic holds values")


async def test_a_claim_of_nothing_halts_where_the_log_no_longer_starts_at_0(
    owning: Owning,
) -> None:
    await owning.send(20)
    admin = KafkaAdminClient(**broker.connection(owning.settings.kafka))
    admin.delete_records({TopicPartition(owning.settings.kafka.sources[0], 0): 5})
    admin.close()
    await halts(owning, "log no longer starts at offset 0")


async def halts(owning: Owning, why: str) -> None:
    """The next owner folds nothing and says nothing."""
    said = len(await owning.scores())
    owner = owning.own()
    await owning.until(lambda: bool(owner.halted))
    assert why in owner.halted and "livevalue recover rebuild" in owner.halted
    assert owning.backing.partition(0).seq == 0
    assert len(await owning.scores()) == said


async def test_a_claim_of_a_rolled_back_store_halts_where_the_log_ends_before_what_was_published(
    owning: Owning,
) -> None:
    first = owning.own()
    await owning.send(40)
    await owning.settle()
    before = owning.backing.snapshot()
    await owning.send(20)
    await owning.settle()
    await first.close(drain=True)
    owning.backing.restore(before)
    mark = (await owning.store.load(0, [])).watermark
    assert mark is not None and mark.published is not None
    # The broker lost the log's end, too: 70 was folded and published, and it ends at 60.
    kafka, end = owning.settings.kafka, await owning.end()
    lost = Published(Identity(mark.identity.seq + 9, "w"), (end + 10,), mark.log_id, "main")
    await owning.producer.send_and_wait(kafka.published, lost.encode(), key=b"0", partition=0)
    said = len(await owning.scores())
    owner = owning.own()
    await owning.until(lambda: bool(owner.halted))
    assert f"ends at offset {end}, yet {end + 10} was folded" in owner.halted
    assert "livevalue recover adopt" in owner.halted
    assert (await owning.store.load(0, [])).watermark == mark
    assert len(await owning.scores()) == said
