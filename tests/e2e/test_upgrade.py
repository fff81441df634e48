"""Upgrade: what an earlier version left in Redis is read and continued; a later one's is refused.

tests/golden/store-v1.json holds a log and what a worker of state version 1 had made of its first
three fifths: every key of its Redis, an outbox that is published in part, a generation. When the
format changes next, its last version gets such a file, and both stay. `make upgrade` does
a rolling restart of processes of two versions.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from featurestore import blob
from featurestore.backends import redis as backend
from featurestore.backends.redis import RedisStore
from featurestore.errors import StateFormatError, StoreMismatch
from featurestore.settings import FeatureSettings
from livevalue.embedded import Stack
from scoring.generation import Generation
from scoring.registry import Registry
from scoring.settings import ModelSettings
from streams.delivery import Simple
from streams.replay import digest_of
from streams.row import join, split
from streams.settings import Settings
from tests.parity.nasty import Laid
from tests.parity.playing import Played, all_differences, cuts, settings

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
# As the changelog tells whoever upgrades and wants to go on with such a store.
KNOTS_THEN = (0, 1, 3, 7, 10, 30, 37, 60, 90, 97, 180, 365)
FILES = sorted(GOLDEN.glob("store-v*.json"))


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


class Left:
    """What another version left: its log, and its Redis in a database of ours."""

    def __init__(self, file: Path, url: str) -> None:
        self.said: dict[str, Any] = json.loads(file.read_text())
        self.client = redis.Redis.from_url(url)
        self.client.flushdb()
        for name, (kind, value) in self.said["keys"].items():
            self._write(name, kind, value)
        self.store = RedisStore.at(url)
        self.log: Laid = {}
        for p, s, offset, key, value, timestamp in self.said["records"]:
            record = Simple(offset, _bytes(key), _bytes(value), timestamp)
            self.log.setdefault((p, s), []).append(record)

    def _write(self, name: str, kind: str, value: Any) -> None:
        match kind:
            case "string":
                self.client.set(name, _bytes(value) or b"")
            case "hash":
                self.client.hset(name, mapping={k: _bytes(v) or b"" for k, v in value.items()})
            case "list":
                self.client.rpush(name, *[_bytes(v) or b"" for v in value])
            case "zset":
                self.client.zadd(name, {_bytes(v) or b"": rank for v, rank in value})
            case "set":
                self.client.sadd(name, *[_bytes(v) or b"" for v in value])
            case _:
                raise AssertionError(kind)

    def close(self) -> None:
        asyncio.run(self.store.close())
        self.client.close()

    @property
    def partitions(self) -> range:
        return range(max(p for p, _ in self.log) + 1)

    async def generation(self) -> Generation:
        """The one that the store was folded with, read from what was left."""
        mark = (await self.store.load(0, [])).watermark
        assert mark is not None
        return await Registry(self.store).get(mark.generation)

    async def rest(self) -> Laid:
        """The log behind the watermarks."""
        left: Laid = {}
        for p in self.partitions:
            mark = (await self.store.load(p, [])).watermark
            assert mark is not None
            for s, position in enumerate(mark.positions):
                left[p, s] = [r for r in self.log.get((p, s), []) if r.offset >= position]
        return left

    async def versions(self) -> set[int]:
        """Formats of the states that the store holds."""
        found = set()
        for p in self.partitions:
            users, _ = await self.store.scan(p, "", 1_000_000)
            rows = (await self.store.load(p, users)).states
            found |= {split(row)[0][0] for row in rows if row}
        return found


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def left(request: pytest.FixtureRequest, stack: Stack) -> Iterator[Left]:
    found = Left(request.param, stack.redis_url.rsplit("/", 1)[0] + "/13")
    yield found
    found.close()


def as_left(left: Left) -> Settings:
    """The settings that the store was made with: defaults, and the knots that were default then."""
    shape = settings(False, len(left.partitions))
    return shape.model_copy(update={"model": ModelSettings(silence_days=KNOTS_THEN)})


def test_every_version_of_the_state_has_its_golden_files() -> None:
    for version in range(1, blob.VERSION + 1):
        assert (GOLDEN / f"state-v{version}.json").is_file()
    # A store is kept of each version that is no longer written; 2 is, of users without an edge.
    assert {f.stem for f in FILES} >= {f"store-v{v}" for v in range(1, blob.WITHOUT_EDGES)}


async def test_a_store_of_an_earlier_version_is_continued_as_if_it_were_ours(left: Left) -> None:
    made = await left.generation()
    assert await left.versions() == {left.said["state_version"]}
    assert (await digest_of(left.store, left.partitions)).hex() == left.said["digest"]

    shape = as_left(left)
    upgraded = Played(shape, made, store=left.store)  # type: ignore[arg-type]
    rest = await left.rest()
    assert sum(map(len, rest.values())) > 60
    # The fingerprint is the same: an upgrade that changes no fold halts nobody.
    await upgraded.play(rest, cuts(rest, "random", 11, 6), restart_every=5)

    fresh = Played(shape, made)
    await fresh.play(left.log, cuts(left.log, "random", 30, 7))
    assert await upgraded.digest() == await fresh.digest()
    assert not all_differences(await upgraded.documents(), await fresh.documents())
    assert blob.WITHOUT_EDGES in await left.versions()


async def test_what_an_earlier_version_has_not_published_is_published_by_ours(left: Left) -> None:
    for p in left.partitions:
        claim = await left.store.claim(p)
        kept = left.said["keys"][f"lv:{{{p}}}:out"][1]
        assert len(claim.outbox) == len(kept) > 2
        assert claim.watermark is not None
        assert claim.outbox[-1].identity == claim.watermark.identity
        named = {user for entry in claim.outbox for user in entry.users}
        assert named
        documents = await left.store.documents(p, sorted(named))
        assert {json.loads(d)["user_id"] for d in documents if d} == named
        assert await left.store.trim(p, claim.token, claim.outbox[-1].identity)


async def test_a_state_of_a_later_version_is_refused_and_left_as_it_is(left: Left) -> None:
    shape = as_left(left)
    found = Played(shape, await left.generation(), store=left.store)  # type: ignore[arg-type]
    rest = await left.rest()
    key = next(name for name in left.said["keys"] if ":s:" in name)
    row: Any = left.client.get(key)
    state, score = split(row)
    later = join(bytes([blob.VERSION + 1]) + state[1:], score)
    left.client.set(key, later)
    before: Any = left.client.hgetall("lv:main:{0}:wm")
    with pytest.raises(StateFormatError) as refused:
        await found.play(rest, cuts(rest, "random", 1000, 6))
    said = str(refused.value)
    assert f"reads up to {blob.VERSION}" in said
    assert "run the newer version" in said
    assert left.client.get(key) == later
    now: Any = left.client.hgetall("lv:main:{0}:wm")
    del before[b"token"], now[b"token"]
    assert now == before


async def test_another_fold_than_the_stores_is_named_by_its_setting(left: Left) -> None:
    shape = as_left(left)
    other = shape.model_copy(update={"features": FeatureSettings(tail_cap=16)})
    found = Played(other, await left.generation(), store=left.store)  # type: ignore[arg-type]
    rest = await left.rest()
    with pytest.raises(StoreMismatch, match=r"LIVEVALUE_FEATURES__TAIL_CAP \(256 in the store"):
        await found.play(rest, cuts(rest, "random", 1000, 6))


async def test_a_store_with_the_knots_of_before_is_not_gone_on_with_unasked(left: Left) -> None:
    shape = settings(False, len(left.partitions))
    found = Played(shape, await left.generation(), store=left.store)  # type: ignore[arg-type]
    rest = await left.rest()
    with pytest.raises(StoreMismatch, match=r"LIVEVALUE_MODEL__SILENCE_DAYS \(\[0.0, 1.0, 3.0"):
        await found.play(rest, cuts(rest, "random", 1000, 6))


async def test_workers_of_two_releases_each_call_their_own_functions(
    left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = as_left(left)
    made = await left.generation()
    ours = backend.library()
    version = "0123456789ab"
    theirs = version, ours[1].replace(ours[0].encode(), version.encode())
    rest = await left.rest()
    plan = list(cuts(rest, "random", 7, 8))
    tokens: list[str] = []
    for turn in range(4):  # each takes over from the other, as in a rolling restart and back
        monkeypatch.setattr(backend, "library", lambda turn=turn: (ours, theirs)[turn % 2])
        tokens += [(await left.store.claim(p)).token for p in left.partitions]
        now = await left.rest()
        worker = Played(shape, made, store=left.store)  # type: ignore[arg-type]
        size = max(1, len(plan) // 4)
        await worker.play(now, iter(_within(now, plan[turn * size : (turn + 1) * size])))
    held_by_server = str(left.client.function_list())
    assert all(f"livevalue_{release}" in held_by_server for release, _ in (ours, theirs))
    # Who was replaced is fenced, by whichever release.
    held = (await left.store.load(0, [])).watermark
    assert held is not None and held.published is not None
    assert not await left.store.trim(0, tokens[0], held.published)
    left.client.function_delete(f"livevalue_{version}")

    last = await left.rest()
    worker = Played(shape, made, store=left.store)  # type: ignore[arg-type]
    monkeypatch.undo()
    await worker.play(last, cuts(last, "random", 20, 9))
    fresh = Played(shape, made)
    await fresh.play(left.log, cuts(left.log, "random", 30, 7))
    assert await worker.digest() == await fresh.digest()


def _within(rest: Laid, plan: list[Any]) -> list[Any]:
    """Of a plan, what the log still has."""
    have = {at: len(records) for at, records in rest.items()}
    found = []
    for p, taken in plan:
        kept = []
        for s, count in taken:
            n = min(count, have[p, s])
            have[p, s] -= n
            if n:
                kept.append((s, n))
        if kept:
            found.append((p, kept))
    return found
