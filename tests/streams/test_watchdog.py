"""A worker that does not get on gives up with one clear line; one that does is left alone."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from livevalue.embedded import Stack
from streams.partition import Owner
from streams.watchdog import Watchdog
from tests.streams.owning import Owning, one_partition


class Watched:
    def __init__(self, owning: Owning) -> None:
        self.owners: dict[int, Owner] = {}
        self.coordinated = True
        self.said: list[str] = []
        self.dog = Watchdog(
            owning.settings, lambda: self.owners, lambda: self.coordinated, self.said.append
        )


@pytest.fixture
async def owning(stack: Stack, topic_prefix: str) -> AsyncIterator[Owning]:
    async with Owning(one_partition(stack.bootstrap, topic_prefix, stall_s=1.0)) as made:
        yield made


async def test_lag_that_shrinks_is_no_stall_and_lag_that_stands_is_one(owning: Owning) -> None:
    watched = Watched(owning)
    owner = owning.own()
    watched.owners[0] = owner
    await owning.send(100)
    await owning.settle()
    await watched.dog.look()
    await owner.close(drain=True)
    await owning.send(10)
    watched.dog._ends_s = 0.0
    await watched.dog.look()  # asks the broker for the end itself
    assert owner.lag == 10 and watched.said == []
    owner.moved_s = time.monotonic() - 2
    await watched.dog.look()
    assert len(watched.said) == 1
    assert "0: 10" in watched.said[0] and "livevalue doctor" in watched.said[0]


async def test_a_halted_partition_is_no_stall_but_only_halted_ones_end_the_worker(
    owning: Owning,
) -> None:
    watched = Watched(owning)
    halted, well = owning.own(), Owner(1, owning.owner._around)  # type: ignore[union-attr]
    halted.halted = "the store is lost: run `livevalue recover rebuild`"
    halted.saw_end([5])
    halted.moved_s = 0.0
    watched.owners = {0: halted}
    await watched.dog.look()
    assert watched.said == [halted.halted]
    watched.said.clear()
    watched.owners[1] = well
    watched.dog._ends_s = time.monotonic()  # partition 1 does not exist on this broker
    await watched.dog.look()
    assert watched.said == []


async def test_a_group_without_a_coordinator_for_long_ends_the_worker(owning: Owning) -> None:
    watched = Watched(owning)
    await watched.dog.look()
    watched.coordinated = False
    await watched.dog.look()
    assert watched.said == []
    watched.dog._coordinated_s -= 2
    await watched.dog.look()
    assert "coordinator" in watched.said[0] and owning.settings.kafka.app in watched.said[0]
