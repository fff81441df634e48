"""The memory store is Redis's readable twin: the same random walk through both ends alike."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from featurestore.errors import StoreError
from featurestore.store import Commit, FeatureStore, Identity, Letter, Watermark, Write
from tests.contract.conftest import Start
from tests.contract.deployments import Deployment, InMemory, InRedis, mark

STORES = ("main", "aside")
MOVES = ["claim", "commit", "trim", "flip", "match", "drop"]
USERS = [f"user {i}" for i in range(12)]


class Walk:
    """One backend's side of a walk. Tokens are random, so steps name them by their number."""

    def __init__(self, deployment: Deployment) -> None:
        self.stores = {name: deployment.open(name) for name in STORES}
        self.tokens: dict[str, list[str]] = {name: ["never given"] for name in STORES}

    def store(self, name: str) -> FeatureStore:
        return self.stores[name]

    def token(self, name: str, number: int) -> str:
        return self.tokens[name][number % len(self.tokens[name])]

    async def claim(self, name: str) -> object:
        claim = await self.store(name).claim(0)
        self.tokens[name].append(claim.token)
        return replace(claim, token="")

    async def commit(self, name: str, number: int, step: Commit) -> object:
        step = replace(step, token=self.token(name, number))
        try:
            return await self.store(name).commit(0, step)
        except StoreError as error:
            return str(error)

    async def flip(self, name: str, number: int, other: str, other_number: int) -> object:
        token, other_token = self.token(name, number), self.token(other, other_number)
        return await self.store(name).flip(0, token, other, other_token)

    async def drop(self, name: str) -> object:
        try:
            await self.store(name).drop(0)
        except StoreError as error:
            return str(error)
        return None

    async def everything(self) -> object:
        main = self.store("main")
        folds = []
        for store in self.stores.values():
            held = await store.load(0, USERS)
            due = await store.due(0, 1 << 50, 99)
            folds.append(
                (held.watermark, held.states, due, sorted((await store.scan(0, "", 99))[0]))
            )
        shared = (await main.documents(0, USERS), await main.top(0, 99), await main.active(0))
        return folds, shared, await main.stores()


def _step(rng: random.Random, held: Watermark | None, publishes: bool) -> Commit:
    """A step that is mostly right and sometimes wrong in one thing."""
    seq = (held.identity.seq if held else 0) + rng.choice([1, 1, 1, 3])
    writer = f"writer {rng.randrange(3)}"
    base = held.positions if held else (0, 0, 0)
    positions = [p + rng.randrange(3) for p in base]
    after = mark(seq, writer, positions, log_id="other" if held and rng.random() < 0.03 else "log")
    if rng.random() < 0.2:
        after = replace(after, published=Identity(rng.randrange(1, seq + 1), writer))
    expected = held
    if held and rng.random() < 0.1:
        expected = rng.choice([None, replace(held, identity=Identity(seq, "somebody"))])
    writes = [
        Write(
            user,
            rng.choice([b"", b"s%d" % seq, b"s%d" % seq]),
            rng.choice([None, b"", b"d%d" % seq, b"d%d" % seq]),
            rng.choice(
                [None, float(rng.randrange(5)), float("nan")] if rng.random() < 0.02 else [1.5]
            ),
            rng.choice([None, rng.randrange(1000)]),
        )
        for user in rng.sample(USERS, rng.randrange(len(USERS)))
    ]
    letters = [Letter(1, seq, "late")] if rng.random() < 0.3 else []
    return Commit("", expected, after, writes, letters, publishes=publishes ^ (rng.random() < 0.1))


@pytest.mark.parametrize("seed", range(4))
async def test_both_backends_answer_alike_on_a_random_walk(server_of: Start, seed: int) -> None:
    rng = random.Random(seed)
    there = InRedis(server_of("valkey"), f"walk{seed}")
    walks = [Walk(InMemory()), Walk(there)]
    done: Counter[str] = Counter()
    for _ in range(250):
        name = rng.choice(STORES)
        other = STORES[1 - STORES.index(name)]
        number = rng.choice([-1] * 9 + [-2])
        held = (await walks[0].store(name).load(0, [])).watermark
        move = rng.choices(MOVES, [3, 12, 3, 2, 2, 1])[0]
        answers: list[object] = []
        serving = await walks[0].store(name).active(0)
        step = _step(rng, held, publishes=serving in (None, name))
        if move == "match":  # bring both stores to equal positions, so that flips happen
            their = (await walks[0].store(other).load(0, [])).watermark
            if held is None or their is None:
                continue
            after = replace(their, identity=Identity(their.identity.seq + 1, "match"))
            higher = tuple(map(max, their.positions, held.positions))
            step = Commit("", their, replace(after, positions=higher), publishes=serving == other)
        published = Identity(rng.randrange(1, 40), f"writer {rng.randrange(3)}")
        if held and rng.random() < 0.5:
            published = held.identity
        for walk in walks:
            if move == "claim":
                answers.append(await walk.claim(name))
            elif move == "commit":
                answers.append(await walk.commit(name, number, step))
            elif move == "match":
                answers.append(await walk.commit(other, -1, step))
                answers.append(await walk.flip(name, -1, other, -1))
            elif move == "trim":
                token = walk.token(name, number)
                answers.append(await walk.store(name).trim(0, token, published))
            elif move == "flip":
                answers.append(await walk.flip(name, number, other, -1))
            else:
                answers.append(await walk.drop(name))
        half = len(answers) // 2
        assert answers[:half] == answers[half:], move
        assert await walks[0].everything() == await walks[1].everything(), move
        what = f"{move} {answers[half - 1]}" if move in ("commit", "match", "trim") else move
        done[what] += 1
    await there.close()
    # The walk went somewhere: otherwise equal answers would say little.
    assert done["commit OK"] > 20
    assert done["trim True"] > 3
    assert done["match OK"] > 0  # that is a flip
