"""The store in Redis 7 or newer, or Valkey: one FUNCTION a commit, one MULTI a load.

Keys, with `lv` as the prefix and p the partition; each call touches one partition's only:

    lv:{p}:v:<user>  lv:{p}:top                      for readers: documents, ranking
    lv:{p}:seq  :out  :active  :next  :stores        of the partition, inside
    lv:<store>:{p}:wm  :s:<user>  :due               of one store: watermark, states, silence
    lv:meta  lv:blob:<key>                           of the deployment

store.lua holds the atomic steps. A load needs no script: MULTI with one MGET is as atomic, and
Redis need not copy each state into Lua and out again (4,096 states of 2.5 kB on Valkey 9.1: 0.55
µs of the server a user, against 2.1 by FCALL_RO). What it gives up: a key of another type in a
state's place reads as no state.
"""

from __future__ import annotations

import hashlib
import secrets
from array import array
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import cache
from math import nan
from pathlib import Path
from sys import byteorder
from typing import Any

from pydantic import SecretStr

from featurestore.backends.checks import builds_active, check, drops_active, half_done, infos
from featurestore.backends.link import At, ErrorReply, Links
from featurestore.backends.packing import (
    entry,
    entry_of,
    fields,
    meta,
    meta_of,
    numbers,
    watermark_of,
)
from featurestore.backends.packing import identity as packed_identity
from featurestore.backends.replies import failure
from featurestore.errors import FeatureStoreError, StoreError
from featurestore.settings import StoreSettings
from featurestore.store import (
    Claim,
    Commit,
    CommitOutcome,
    Identity,
    Listed,
    Loaded,
    Meta,
    StoreInfo,
    Watermark,
)

_PAGE = 1000  # keys that one SCAN looks at, and one UNLINK frees: about a millisecond of Redis


@cache
def library() -> tuple[str, bytes]:
    """Version and text of the FUNCTION library: the version is a hash of the text."""
    text = (Path(__file__).parent / "store.lua").read_bytes()
    version = hashlib.blake2b(text, digest_size=6).hexdigest()
    return version, text.replace(b"VERSION", version.encode())


class RedisStore:
    """FeatureStore in Redis; see featurestore.store for what each method promises."""

    def __init__(
        self,
        settings: StoreSettings | None = None,
        *,
        name: str | None = None,
        prefix: str = "lv",
        links: Links | None = None,
    ) -> None:
        settings = settings or StoreSettings()
        self.name = name or settings.name
        self.prefix = prefix
        self._links = links or Links.of(settings)
        self._shares_links = links is not None

    @classmethod
    def at(cls, url: str, *, name: str = "main", prefix: str = "lv") -> RedisStore:
        """A store at `url`, everything else as by default."""
        return cls(StoreSettings(url=SecretStr(url)), name=name, prefix=prefix)

    def sibling(self, name: str) -> RedisStore:
        """Another store of this deployment, over the same connections; closed with this one."""
        return RedisStore(name=name, prefix=self.prefix, links=self._links)

    # Names of keys.

    def _of(self, partition: int, what: str) -> bytes:
        return f"{self.prefix}:{{{partition}}}:{what}".encode()

    def _own(self, partition: int, what: str, store: str | None = None) -> bytes:
        return f"{self.prefix}:{store or self.name}:{{{partition}}}:{what}".encode()

    def _global(self, what: str) -> bytes:
        return f"{self.prefix}:{what}".encode()

    # Calls.

    async def _ask(self, at: At, *commands: Sequence[bytes]) -> list[Any]:
        try:
            return await self._links.ask(at, commands)
        except ErrorReply as error:
            raise failure(str(error), self._links.where) from None

    async def _one(self, at: At, *args: bytes) -> Any:
        return (await self._ask(at, args))[0]

    async def _fcall(
        self,
        partition: int,
        function: str,
        keys: Sequence[bytes],
        argv: Sequence[bytes],
    ) -> Any:
        """Call our function; loads the library where the server has none of our version."""
        version, text = library()
        name = f"livevalue_{function}_{version}".encode()
        call = [b"FCALL", name, b"%d" % len(keys), *keys, *argv]
        reply = (await self._links.send(partition, [call]))[0]
        if isinstance(reply, ErrorReply) and "function not found" in str(reply).lower():
            # A server new, flushed or of another release; it has done nothing yet.
            try:
                await self._links.ask(partition, [[b"FUNCTION", b"LOAD", text]])
            except ErrorReply as error:
                if "already exists" not in str(error):  # another worker was faster
                    raise failure(str(error), self._links.where) from None
            reply = (await self._links.send(partition, [call]))[0]
        if isinstance(reply, ErrorReply):
            raise self._refusal(str(reply), partition, function)
        return reply

    def _refusal(self, text: str, partition: int, function: str) -> FeatureStoreError:
        if text.startswith("LVACTIVE"):
            if function == "drop":
                return StoreError(drops_active(self.name, partition))
            return StoreError(builds_active(self.name))
        if text.startswith("LVDROPPING"):
            return half_done(text.split()[1], self.name)
        if text.startswith("LVDROPPED"):
            return StoreError(
                f"store {self.name!r} was dropped or wiped by somebody else just now: look with "
                "`livevalue stores ls`"
            )
        return failure(text, self._links.where)

    # The protocol.

    async def claim(self, partition: int) -> Claim:
        token = secrets.token_hex(16)
        keys = [
            self._own(partition, "wm"),
            self._of(partition, "active"),
            self._of(partition, "out"),
        ]
        argv = [token.encode(), self.name.encode()]
        flat, entries = await self._fcall(partition, "claim", keys, argv)
        return Claim(token, watermark_of(flat)[1], tuple(map(entry_of, entries)))

    async def load(self, partition: int, users: Sequence[str]) -> Loaded:
        mark = [b"HGETALL", self._own(partition, "wm")]
        if not users:
            token, held = watermark_of(await self._one(partition, *mark))
            return Loaded(token, held, [])
        head = self._own(partition, "s:")
        states = [b"MGET", *[head + user.encode() for user in users]]
        replies = await self._ask(partition, [b"MULTI"], mark, states, [b"EXEC"])
        flat, rows = replies[-1]
        for reply in (flat, rows):
            if isinstance(reply, ErrorReply):
                raise failure(str(reply), self._links.where)
        token, held = watermark_of(flat)
        return Loaded(token, held, rows)

    async def commit(self, partition: int, commit: Commit) -> CommitOutcome:
        check(commit)
        after, before, writes = commit.watermark, commit.expected, commit.writes
        users = [w.user.encode() for w in writes]
        documents = [w.document for w in writes] if commit.publishes else [None] * len(writes)
        named = [i for i, document in enumerate(documents) if document is not None]
        own, reader = self._own(partition, "s:"), self._of(partition, "v:")
        keys = [
            self._own(partition, "wm"),
            self._own(partition, "due"),
            self._of(partition, "active"),
            self._of(partition, "seq"),
            self._of(partition, "out"),
            self._of(partition, "top"),
            self._of(partition, "stores"),
            *[own + user for user in users],
            *[reader + users[i] for i in named],
        ]
        published = after.published
        mark = fields(after)
        argv = [
            commit.token.encode(),
            self.name.encode(),
            b"1" if commit.publishes else b"0",
            numbers(before.positions) if before else b"",
            b"%d" % before.identity.seq if before else b"",
            before.identity.writer.encode() if before else b"",
            after.log_id.encode(),
            b"%d" % after.identity.seq,
            b"%d" % published.seq if published else b"-1",
            entry(after.identity, [writes[i].user for i in named], commit.letters),
            b"%d" % len(own),
            b"%d" % len(users),
            b"".join(
                [
                    b"-" if d is None else b"d" if not d else b"s" if w.rank is None else b"S"
                    for d, w in zip(documents, writes, strict=True)
                ]
            ),
            _doubles([nan if w.rank is None else w.rank for w in writes]),
            _doubles([nan if w.due_ms is None else w.due_ms for w in writes]),
            b"%d" % (len(mark) // 2),
            *mark,
            *[w.state for w in writes],
            *[document for document in documents if document],
        ]
        erases = bool(named) and len(named) == len(writes) and not any(documents)
        reply = await self._fcall(partition, "erase" if erases else "commit", keys, argv)
        return CommitOutcome(reply.decode())

    async def trim(self, partition: int, token: str, published: Identity) -> bool:
        keys = [
            self._own(partition, "wm"),
            self._of(partition, "active"),
            self._of(partition, "out"),
        ]
        argv = [token.encode(), self.name.encode(), packed_identity(published)]
        return bool(await self._fcall(partition, "trim", keys, argv))

    async def flip(self, partition: int, token: str, other: str, other_token: str) -> CommitOutcome:
        keys = [
            self._own(partition, "wm"),
            self._own(partition, "wm", other),
            self._of(partition, "active"),
            self._of(partition, "seq"),
            self._of(partition, "next"),
        ]
        argv = [text.encode() for text in (token, other_token, self.name, other)]
        return CommitOutcome((await self._fcall(partition, "flip", keys, argv)).decode())

    async def others(self, partition: int) -> list[str]:
        names, serving = await self._ask(
            partition,
            [b"SMEMBERS", self._of(partition, "stores")],
            [b"GET", self._of(partition, "active")],
        )
        return sorted(name.decode() for name in names if name != serving)

    async def forget(self, partition: int, rows: Sequence[tuple[str, bytes, bytes]]) -> int:
        own = self._own(partition, "s:")
        users = [user.encode() for user, _, _ in rows]
        keys = [
            self._of(partition, "active"),
            self._own(partition, "due"),
            *(own + user for user in users),
        ]
        argv = [self.name.encode()]
        for user, (_, read, after) in zip(users, rows, strict=True):
            argv += [user, read, after]
        return int(await self._fcall(partition, "forget", keys, argv))

    async def drop(self, partition: int) -> int:
        keys = [
            self._own(partition, "wm"),
            self._own(partition, "due"),
            self._of(partition, "active"),
            self._of(partition, "stores"),
        ]
        name = self.name.encode()
        gone = int(await self._fcall(partition, "drop", keys, [name, b"begin"]))
        async for found in self._pages(partition, self._own(partition, "s:")):
            page = [*keys, *found]
            gone += int(await self._fcall(partition, "drop", page, [name, b"page"]))
        await self._fcall(partition, "drop", keys, [name, b"end"])
        return gone

    async def reset(
        self,
        partition: int,
        token: str,
        watermark: Watermark,
        *,
        wipe: bool,
        published: Identity | None = None,
    ) -> CommitOutcome:
        keys = [
            self._own(partition, "wm"),
            self._own(partition, "due"),
            *(self._of(partition, what) for what in ("active", "seq", "out", "top", "stores")),
            self._of(partition, "next"),
        ]
        head = [token.encode(), self.name.encode()]
        mark = fields(replace(watermark, published=published))
        at = mark.index(b"seq")  # the function writes it
        told = [b"%d" % watermark.identity.seq, packed_identity(published)]
        told += mark[:at] + mark[at + 2 :]

        async def step(what: bytes, more: Sequence[bytes] = ()) -> CommitOutcome:
            reply = await self._fcall(partition, "reset", [*keys, *more], [*head, what, *told])
            return CommitOutcome(reply.decode())

        if not wipe:
            return await step(b"keep")
        outcome = await step(b"begin")
        for start in (self._own(partition, "s:"), self._of(partition, "v:")):
            if outcome != CommitOutcome.OK:
                return outcome
            async for found in self._pages(partition, start):
                outcome = await step(b"page", found)
                if outcome != CommitOutcome.OK:
                    return outcome
        return await step(b"end")

    async def due(self, partition: int, now_ms: int, limit: int) -> list[str]:
        key, until = self._own(partition, "due"), b"%d" % now_ms
        page = [b"LIMIT", b"0", b"%d" % limit]
        ready = await self._one(partition, b"ZRANGEBYSCORE", key, b"-inf", until, *page)
        return [user.decode() for user in ready]

    async def scan(self, partition: int, cursor: str, limit: int) -> tuple[list[str], str]:
        return await self._users(partition, self._own(partition, "s:"), cursor, limit)

    async def scan_documents(
        self, partition: int, cursor: str, limit: int
    ) -> tuple[list[str], str]:
        return await self._users(partition, self._of(partition, "v:"), cursor, limit)

    async def _users(
        self, partition: int, start: bytes, cursor: str, limit: int
    ) -> tuple[list[str], str]:
        """A page of the users whose keys begin with `start`."""
        at, users = cursor.encode() or b"0", dict[str, None]()
        while True:
            at, found = await self._scan(partition, start, at, max(limit, 1))
            users.update((key[len(start) :].decode(), None) for key in found)
            if at == b"0" or len(users) >= limit:
                return list(users), "" if at == b"0" else at.decode()

    async def _scan(
        self, partition: int, start: bytes, cursor: bytes, count: int
    ) -> tuple[bytes, list[bytes]]:
        """One SCAN over the keys that begin with `start`; b"0" starts and ends a walk.

        A cursor means something to the process that gave it only: each hashes keys by a seed of
        its own. After a restart or a failover the walk begins anew, else it would pass over users.
        Nor would a walk see keys that have gone before their slot to another node of a cluster: a
        key that does not exist is asked for, which a node refuses while its slot moves (ASK).
        """
        who, _, at = cursor.rpartition(b":")
        while True:
            options = [b"MATCH", _literal(start) + b"*", b"COUNT", b"%d" % count]
            nobody = [b"GET", self._of(partition, "moving")]
            told, (after, found), _ = await self._ask(
                partition, [b"INFO", b"server"], [b"SCAN", at, *options], nobody
            )
            here = told.partition(b"run_id:")[2].split(None, 1)[0]
            if not who or who == here:
                return (b"0" if after == b"0" else here + b":" + after), found
            who, at = here, b"0"

    async def _pages(self, partition: int, start: bytes) -> AsyncIterator[list[bytes]]:
        """All keys that begin with `start`, in pages that hold at least one."""
        cursor = b"0"
        while True:
            cursor, found = await self._scan(partition, start, cursor, _PAGE)
            if found:
                yield found
            if cursor == b"0":
                return

    async def active(self, partition: int) -> str | None:
        return _text(await self._one(partition, b"GET", self._of(partition, "active")))

    async def next(self, partition: int) -> str | None:
        return _text(await self._one(partition, b"GET", self._of(partition, "next")))

    async def set_next(self, partition: int, name: str | None) -> None:
        key = self._of(partition, "next")
        if name is None:
            await self._one(partition, b"DEL", key)
        else:
            await self._one(partition, b"SET", key, name.encode())

    async def document(self, partition: int, user: str) -> bytes | None:
        held: bytes | None = await self._one(
            partition, b"GET", self._of(partition, "v:") + user.encode()
        )
        return held

    async def documents(self, partition: int, users: Sequence[str]) -> list[bytes | None]:
        if not users:
            return []
        head = self._of(partition, "v:")
        held: list[bytes | None] = await self._one(
            partition, b"MGET", *[head + user.encode() for user in users]
        )
        return held

    async def listed(self, partition: int, users: Sequence[str]) -> list[Listed]:
        if not users:
            return []
        ids, head = [user.encode() for user in users], self._of(partition, "v:")
        asked = [
            [b"MGET", *[head + user for user in ids]],
            [b"ZMSCORE", self._of(partition, "top"), *ids],
            [b"ZMSCORE", self._own(partition, "due"), *ids],
        ]
        replies = (await self._ask(partition, [b"MULTI"], *asked, [b"EXEC"]))[-1]
        for reply in replies:
            if isinstance(reply, ErrorReply):
                raise failure(str(reply), self._links.where)
        return [
            Listed(
                document,
                None if rank is None else float(rank),
                None if due is None else int(float(due)),
            )
            for document, rank, due in zip(*replies, strict=True)
        ]

    async def top(self, partition: int, n: int) -> list[tuple[str, float]]:
        if n <= 0:
            return []
        key, last = self._of(partition, "top"), b"%d" % (n - 1)
        flat = await self._one(partition, b"ZREVRANGE", key, b"0", last, b"WITHSCORES")
        return [(u.decode(), float(r)) for u, r in zip(flat[::2], flat[1::2], strict=True)]

    async def meta(self) -> Meta | None:
        text = await self._one(None, b"GET", self._global("meta"))
        return None if text is None else meta_of(text)

    async def set_meta(self, meta_: Meta) -> None:
        await self._one(None, b"SET", self._global("meta"), meta(meta_))

    async def stores(self) -> list[StoreInfo]:
        marks: dict[str, dict[int, Watermark]] = {}
        active: set[str] = set()
        for partition in await self._partitions():
            names, serving = await self._ask(
                partition,
                [b"SMEMBERS", self._of(partition, "stores")],
                [b"GET", self._of(partition, "active")],
            )
            for name in sorted(names):
                flat = await self._one(
                    partition, b"HGETALL", self._own(partition, "wm", name.decode())
                )
                if b"dropping" in flat[::2]:
                    continue
                held = watermark_of(flat)[1]
                if held is not None:
                    marks.setdefault(name.decode(), {})[partition] = held
                    if name == serving:
                        active.add(name.decode())
        return infos(marks, active)

    async def _partitions(self) -> list[int]:
        """Partitions that hold a store; `lv:meta` spares a walk over all keys."""
        known = await self.meta()
        if known is not None:
            return list(range(known.partitions))
        pattern = _literal(f"{self.prefix}:{{".encode()) + b"*" + _literal(b"}:stores")
        found: set[bytes] = set()
        for node in await self._links.all():
            cursor = b"0"
            while True:
                options = [b"MATCH", pattern, b"COUNT", b"%d" % (10 * _PAGE)]
                cursor, page = await self._one(node, b"SCAN", cursor, *options)
                found.update(page)
                if cursor == b"0":
                    break
        return sorted(int(key.rpartition(b"{")[2].partition(b"}")[0]) for key in found)

    async def blob(self, key: str) -> bytes | None:
        data: bytes | None = await self._one(None, b"GET", self._global(f"blob:{key}"))
        return data

    async def put_blob(self, key: str, data: bytes) -> None:
        await self._one(None, b"SET", self._global(f"blob:{key}"), data)

    async def close(self) -> None:
        if not self._shares_links:
            await self._links.close()


def _doubles(of: Sequence[float]) -> bytes:
    column = array("d", of)
    if byteorder == "big":
        column.byteswap()
    return column.tobytes()


def _literal(text: bytes) -> bytes:
    """`text` as a pattern that matches nothing else."""
    return b"".join(b"\\" + bytes([c]) if c in b"*?[]\\^" else bytes([c]) for c in text)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
