"""Whatever comes in whatever order: Redis back and forth, owners that end, transactions that break.

A course is drawn by its seed: some ten steps at one owner, with pages and transactions so small
that everything comes in several. Then all comes to rest, and nothing may be lost, doubled or
unsaid. COURSES_FROM=1000 draws others than those of every run.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from typing import Any

import pytest

from featurestore.store import Commit, CommitOutcome
from livevalue.embedded import Stack
from streams import claim, held, publish, sweep
from streams.errors import PublishError
from streams.partition import Owner
from streams.publish import Publisher
from tests.streams.owning import CLEAN, START_MS, Owning, one_partition
from tests.streams.test_lost_values import made_again

_ERASED = "z"  # the user whom steps erase, and who comes back
_KEPT = 400  # states of the store that a step may bring back


class Course:
    """One owner, and what happens to it."""

    def __init__(self, owning: Owning, seed: int, patch: pytest.MonkeyPatch) -> None:
        self._owning = owning
        self._draw = random.Random(seed)
        self._states: list[object] = []
        self._newest: object | None = None  # before Redis went back
        self._breaks = 0.0  # share of transactions
        self._topic = owning.settings.kafka.sources[0]
        self.steps: list[str] = []  # as they were made
        self.letters: list[bytes] = []  # that are due
        self.erased_events = 0
        self.published_lost = False
        pick = self._draw.choice
        patch.setattr(held, "REFRESH_USERS", pick([3, 6, 400]))
        patch.setattr(publish, "_USERS", pick([4, 12, 5000]))
        patch.setattr(claim, "_PUBLISHED_PATIENCE_S", 0.2)
        patch.setattr(claim, "_PAGE", pick([3, 1000]))
        patch.setattr(sweep, "PAGE", pick([7, 15, 400]))
        commit, transact = owning.store.commit, Publisher._transact

        async def kept(partition: int, step: Commit) -> CommitOutcome:
            done = await commit(partition, step)
            self._states = [*self._states[-_KEPT:], owning.backing.snapshot()]
            return done

        async def may_break(publisher: Publisher, *what: Any) -> None:
            at = self._draw.random()
            if at < self._breaks / 2:
                raise PublishError("before it was committed")
            await transact(publisher, *what)
            if at < self._breaks:
                raise PublishError("after it was committed")

        patch.setattr(owning.store, "commit", kept)
        patch.setattr(Publisher, "_transact", may_break)
        self.owner: Owner = owning.own()

    async def run(self, names: list[str]) -> None:
        """Ten steps or so of these names, then rest."""
        await self.send()
        await self._owning.settle()
        for _ in range(self._draw.randrange(5, 14)):
            name = self._draw.choice(names)
            self.steps.append(name)
            await getattr(self, name)()
            await asyncio.sleep(self._draw.choice([0, 0.05, 0.3, 1.0]))
        self._breaks = 0.0
        await self.erase()  # so that the audit knows what there is to be of him
        await self._owning.send(3)
        await self._rest()

    async def _rest(self) -> None:
        await self._owning.show_end()
        await self._owning.settle(40)
        await self._owning.until(
            lambda: (m := self.owner.watermark) is not None and not sweep.pending(m)
        )
        await self._owning.settle()

    async def send(self) -> None:
        await self._owning.send(self._draw.randrange(1, 60), self._draw.choice([1, 5, 40]))

    async def bad(self) -> None:
        self.letters.append(b"{bad %d" % len(self.letters))
        await self._owning.producer.send_and_wait(self._topic, self.letters[-1], b"u1", 0)

    async def buy(self) -> None:
        """An event of who may be erased."""
        self.erased_events += 1
        event = {
            "type": "purchase",
            "event_id": f"{_ERASED}{self.erased_events}",
            "user_id": _ERASED,
            "event_time": START_MS,
            "amount": "1.50",
        }
        await self._owning.producer.send_and_wait(
            self._topic, json.dumps(event).encode(), _ERASED.encode(), 0
        )

    async def erase(self) -> None:
        await asyncio.sleep(0.01)  # later than what he did, by the record's milliseconds
        await self._owning.producer.send_and_wait(self._topic, None, _ERASED.encode(), 0)

    async def back(self) -> None:
        """Redis as it was after some commit."""
        self._newest = self._owning.backing.snapshot()
        self._owning.backing.restore(self._draw.choice(self._states))

    async def forth(self) -> None:
        """Redis as it was before it went back."""
        if self._newest is not None:
            self._owning.backing.restore(self._newest)

    async def end(self) -> None:
        """The owner ends, and another one begins."""
        await self.owner.close(drain=self._draw.random() < 0.3)
        self.owner = self._owning.own()
        await self._owning.show_end()

    async def break_some(self) -> None:
        self._breaks = 0.5

    async def break_none(self) -> None:
        self._breaks = 0.0

    async def lose_published(self) -> None:
        self.published_lost = True
        await made_again(self._owning, self._owning.settings.kafka.published)


_STEPS = [
    *("send", "send", "back", "back", "forth", "end", "break_some", "break_none"),
    *("bad", "buy", "erase"),
]


@pytest.mark.parametrize(
    "seed",
    [*range(5), *(pytest.param(n, marks=pytest.mark.long) for n in range(5, 45))],
)
async def test_nothing_is_lost_doubled_or_unsaid_in_whatever_order_things_go_wrong(
    stack: Stack, topic_prefix: str, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The last ten lose what says how far is published, too: then letters may come again."""
    seed += int(os.environ.get("COURSES_FROM", "0"))
    loses = seed % 45 >= 35
    settings = one_partition(
        stack.bootstrap, topic_prefix, batch=random.Random(seed).choice([5, 20, 1000])
    )
    async with Owning(settings) as owning:
        course = Course(owning, seed, monkeypatch)
        await course.run([*_STEPS, "lose_published"] if loses else _STEPS)
        assert await owning.audit() == CLEAN, course.steps
        letters = [record.value for record in await owning.read(settings.kafka.dlq)]
        if course.published_lost:
            letters = list(set(letters))
        assert sorted(filter(None, letters)) == sorted(course.letters), course.steps
