"""The store in this process's memory: same semantics as Redis, no server, nothing kept.

For tests, scratch replays and `verify`. Several stores of one deployment share a Backing, as
several stores share one Redis; `Backing.snapshot` and `restore` play a Redis that rolled back.

>>> import asyncio
>>> backing = Backing()
>>> main, aside = MemoryStore("main", backing), MemoryStore("aside", backing)
>>> asyncio.run(main.claim(0)).watermark is None
True
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from featurestore.backends.checks import builds_active, check, drops_active, infos
from featurestore.errors import StoreError, StoreUnavailable
from featurestore.store import (
    Claim,
    Commit,
    CommitOutcome,
    Identity,
    Listed,
    Loaded,
    Meta,
    OutboxEntry,
    StoreInfo,
    Watermark,
)

_V = TypeVar("_V")


@dataclass(slots=True)
class _Fold:
    """Of one store and partition: `lv:<store>:{p}:*`."""

    token: str = ""
    watermark: Watermark | None = None
    states: dict[str, bytes] = field(default_factory=dict)
    due: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Partition:
    """Of one partition, whatever store is active: `lv:{p}:*`."""

    active: str | None = None
    next: str | None = None
    seq: int = 0
    outbox: list[OutboxEntry] = field(default_factory=list)
    documents: dict[str, bytes] = field(default_factory=dict)
    ranks: dict[str, float] = field(default_factory=dict)
    folds: dict[str, _Fold] = field(default_factory=dict)


@dataclass(slots=True)
class _Content:
    partitions: dict[int, _Partition] = field(default_factory=dict)
    meta: Meta | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)


class Backing:
    """What stores of one deployment share: in Redis's place, a few dictionaries.

    lose_answers: the next so many commits are made and then not answered (StoreUnavailable), as
    when a connection breaks between a commit and its answer.
    """

    def __init__(self) -> None:
        self.lose_answers = 0
        self.content = _Content()

    def partition(self, partition: int) -> _Partition:
        return self.content.partitions.setdefault(partition, _Partition())

    def snapshot(self) -> object:
        """Everything as it stands, to `restore` later."""
        return copy.deepcopy(self.content)

    def restore(self, snapshot: object) -> None:
        """Roll everything back to `snapshot`, which can be used again."""
        if not isinstance(snapshot, _Content):
            raise TypeError("restore takes what snapshot() gave")
        self.content = copy.deepcopy(snapshot)


class MemoryStore:
    """FeatureStore in memory; see featurestore.store for what each method promises."""

    def __init__(self, name: str = "main", backing: Backing | None = None) -> None:
        self.name = name
        self.backing = backing if backing is not None else Backing()

    def snapshot(self) -> object:
        return self.backing.snapshot()

    def restore(self, snapshot: object) -> None:
        self.backing.restore(snapshot)

    def _fold(self, partition: int) -> _Fold:
        return self.backing.partition(partition).folds.setdefault(self.name, _Fold())

    async def claim(self, partition: int) -> Claim:
        shared, fold = self.backing.partition(partition), self._fold(partition)
        fold.token = secrets.token_hex(16)
        outbox = tuple(shared.outbox) if shared.active in (None, self.name) else ()
        return Claim(fold.token, fold.watermark, outbox)

    async def load(self, partition: int, users: Sequence[str]) -> Loaded:
        fold = self._fold(partition)
        return Loaded(fold.token, fold.watermark, [fold.states.get(user) for user in users])

    async def commit(self, partition: int, commit: Commit) -> CommitOutcome:
        check(commit)
        shared, fold = self.backing.partition(partition), self._fold(partition)
        refused = self._refused(shared, fold, commit)
        if refused is not None:
            return refused
        for w in commit.writes:
            _put(fold.states, w.user, w.state or None)
            _put(fold.due, w.user, w.due_ms)
            if not commit.publishes or w.document is None:
                continue
            _put(shared.documents, w.user, w.document or None)
            if not w.document:
                shared.ranks.pop(w.user, None)
            elif w.rank is not None:
                shared.ranks[w.user] = w.rank
        after = commit.watermark
        held = fold.watermark.published if fold.watermark else None
        if held and (after.published is None or after.published.seq < held.seq):
            after = replace(after, published=held)
        fold.watermark = after
        if commit.publishes:
            users = tuple(w.user for w in commit.writes if w.document is not None)
            shared.outbox.append(OutboxEntry(after.identity, users, tuple(commit.letters)))
            shared.seq = after.identity.seq
            shared.active = self.name
        if self.backing.lose_answers:
            self.backing.lose_answers -= 1
            raise StoreUnavailable("the answer to a commit was lost: claim again")
        return CommitOutcome.OK

    def _refused(self, shared: _Partition, fold: _Fold, commit: Commit) -> CommitOutcome | None:
        held, expected = fold.watermark, commit.expected
        if not fold.token or fold.token != commit.token:
            return CommitOutcome.FENCED
        if commit.publishes and shared.active not in (None, self.name):
            return CommitOutcome.FENCED
        if not commit.publishes and shared.active == self.name:
            raise StoreError(builds_active(self.name))
        # A store that was built from files alone follows no log yet.
        if held is not None and held.log_id not in ("", commit.watermark.log_id):
            return CommitOutcome.RESET
        if (held is None) != (expected is None):
            return CommitOutcome.STALE
        if (
            held
            and expected
            and (held.positions, held.identity)
            != (
                expected.positions,
                expected.identity,
            )
        ):
            return CommitOutcome.STALE
        if commit.publishes and commit.watermark.identity.seq <= shared.seq:
            return CommitOutcome.STALE
        return None

    async def trim(self, partition: int, token: str, published: Identity) -> bool:
        shared, fold = self.backing.partition(partition), self._fold(partition)
        if fold.token != token or shared.active not in (None, self.name):
            return False
        places = [i for i, entry in enumerate(shared.outbox) if entry.identity == published]
        if places:
            del shared.outbox[: places[-1]]
        if fold.watermark is not None:
            fold.watermark = replace(fold.watermark, published=published)
        return True

    async def due(self, partition: int, now_ms: int, limit: int) -> list[str]:
        due = self._fold(partition).due
        ready = sorted((when, user) for user, when in due.items() if when <= now_ms)
        return [user for _, user in ready[:limit]]

    async def scan(self, partition: int, cursor: str, limit: int) -> tuple[list[str], str]:
        return _page(self._fold(partition).states, cursor, limit)

    async def scan_documents(
        self, partition: int, cursor: str, limit: int
    ) -> tuple[list[str], str]:
        return _page(self.backing.partition(partition).documents, cursor, limit)

    async def active(self, partition: int) -> str | None:
        return self.backing.partition(partition).active

    async def next(self, partition: int) -> str | None:
        return self.backing.partition(partition).next

    async def set_next(self, partition: int, name: str | None) -> None:
        self.backing.partition(partition).next = name

    async def flip(self, partition: int, token: str, other: str, other_token: str) -> CommitOutcome:
        shared, ours = self.backing.partition(partition), self._fold(partition)
        theirs = shared.folds.get(other, _Fold())
        if shared.active != self.name or not (token and other_token):
            return CommitOutcome.FENCED
        if (ours.token, theirs.token) != (token, other_token):
            return CommitOutcome.FENCED
        if ours.watermark is None or theirs.watermark is None:
            return CommitOutcome.STALE
        if len({ours.watermark.log_id, theirs.watermark.log_id} - {""}) > 1:
            return CommitOutcome.RESET
        if ours.watermark.positions != theirs.watermark.positions:
            return CommitOutcome.STALE
        theirs.watermark = replace(
            theirs.watermark,
            identity=ours.watermark.identity,
            published=ours.watermark.published,
        )
        shared.active = other
        if shared.next == other:
            shared.next = None
        return CommitOutcome.OK

    def sibling(self, name: str) -> MemoryStore:
        return MemoryStore(name, self.backing)

    async def others(self, partition: int) -> list[str]:
        shared = self.backing.partition(partition)
        return sorted(n for n, f in shared.folds.items() if f.watermark and n != shared.active)

    async def forget(self, partition: int, rows: Sequence[tuple[str, bytes, bytes]]) -> int:
        fold = self._fold(partition)
        if self.backing.partition(partition).active == self.name:
            return 0
        same = [(user, after) for user, read, after in rows if fold.states.get(user) == read]
        fold.states.update(same)
        for user, _ in same:
            fold.due.pop(user, None)
        return len(same)

    async def drop(self, partition: int) -> int:
        shared = self.backing.partition(partition)
        if shared.active == self.name:
            raise StoreError(drops_active(self.name, partition))
        fold = shared.folds.pop(self.name, _Fold())
        return len(fold.states) + bool(fold.due) + bool(fold.token or fold.watermark)

    async def reset(
        self,
        partition: int,
        token: str,
        watermark: Watermark,
        *,
        wipe: bool,
        published: Identity | None = None,
    ) -> CommitOutcome:
        shared, fold = self.backing.partition(partition), self._fold(partition)
        if not fold.token or fold.token != token:
            return CommitOutcome.FENCED
        if wipe:
            for place in (fold.states, fold.due, shared.documents, shared.ranks):
                place.clear()
        seq = max(watermark.identity.seq, shared.seq)
        identity = replace(watermark.identity, seq=seq)
        fold.watermark = replace(watermark, identity=identity, published=published)
        shared.seq, shared.active, shared.next = seq, self.name, None
        shared.outbox = [OutboxEntry(published, ())] if published else []
        return CommitOutcome.OK

    async def document(self, partition: int, user: str) -> bytes | None:
        return self.backing.partition(partition).documents.get(user)

    async def documents(self, partition: int, users: Sequence[str]) -> list[bytes | None]:
        held = self.backing.partition(partition).documents
        return [held.get(user) for user in users]

    async def listed(self, partition: int, users: Sequence[str]) -> list[Listed]:
        shared, due = self.backing.partition(partition), self._fold(partition).due
        return [Listed(shared.documents.get(u), shared.ranks.get(u), due.get(u)) for u in users]

    async def top(self, partition: int, n: int) -> list[tuple[str, float]]:
        ranks = self.backing.partition(partition).ranks
        # As Redis: equal ranks in falling order of the id's bytes.
        order = sorted(ranks.items(), key=lambda r: (r[1], r[0].encode()), reverse=True)
        return order[: max(0, n)]

    async def meta(self) -> Meta | None:
        return self.backing.content.meta

    async def set_meta(self, meta: Meta) -> None:
        self.backing.content.meta = meta

    async def stores(self) -> list[StoreInfo]:
        marks: dict[str, dict[int, Watermark]] = {}
        active: set[str] = set()
        for number, shared in sorted(self.backing.content.partitions.items()):
            for name, fold in shared.folds.items():
                if fold.watermark is not None:
                    marks.setdefault(name, {})[number] = fold.watermark
                    if shared.active == name:
                        active.add(name)
        return infos(marks, active)

    async def blob(self, key: str) -> bytes | None:
        return self.backing.content.blobs.get(key)

    async def put_blob(self, key: str, data: bytes) -> None:
        self.backing.content.blobs[key] = bytes(data)

    async def close(self) -> None:
        """Nothing to close; what the backing holds stays."""


def _page(users: Iterable[str], cursor: str, limit: int) -> tuple[list[str], str]:
    """Users after `cursor`, so that what goes meanwhile hides nobody."""
    rest = sorted(user for user in users if user > cursor)
    page = rest[: max(1, limit)]
    return page, page[-1] if len(page) < len(rest) else ""


def _put(place: dict[str, _V], user: str, value: _V | None) -> None:
    if value is None:
        place.pop(user, None)
    else:
        place[user] = value
