"""The store's contract: claim, load, commit, trim, read. One batch is one atomic commit.

Every commit has an identity (seq, token of its writer). It stands in the watermark, in the
outbox entry and in the record by which the commit was published, so that a rolled-back Redis
can be told from progress. Safety comes from the compare-and-set on positions and seq; tokens
only stop wasted work. Backends: backends/memory.py and backends/redis.py, one contract suite.

Times are integer milliseconds, UTC. All methods raise StoreUnavailable (back off and claim
again) or StoreError (an operator must act) and nothing of the driver's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class CommitOutcome(StrEnum):
    """Answer to a commit: only OK changed anything."""

    OK = "OK"
    FENCED = "FENCED"  # another writer claimed the partition after us
    STALE = "STALE"  # positions or seq are not what the writer expected
    RESET = "RESET"  # the log's identity differs: topic recreated, or another deployment


@dataclass(frozen=True, slots=True)
class Identity:
    """Identity of a commit: its number and the token of its writer."""

    seq: int
    writer: str


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far a store has folded one partition.

    positions, clocks and marks are indexed by source, in the order of the settings' topics.
    """

    positions: tuple[int, ...]  # next offset to apply
    clocks: tuple[int, ...]  # largest accepted event time, NO_TIME where none
    identity: Identity  # of the last commit
    log_id: str  # identity of the logs: topic UUIDs
    marks: tuple[str, ...]  # fingerprint of the record before the position, "" where none
    fingerprint: str  # of the fold's settings and the generation
    generation: str
    base: str = ""  # what files were folded first, JSON; "" = none
    published: Identity | None = None  # last identity known to be published
    progress: str = ""  # of a sweep, JSON; rolled back with the rest, so redone
    idle: tuple[bool, ...] = ()  # sources left out of the frontier
    trails: tuple[str, ...] = ()  # what was read lately of each source, and of which leader


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter named by the outbox; its bytes are read back from the log."""

    source: int
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """One commit that may not be published yet."""

    identity: Identity
    users: tuple[str, ...]
    letters: tuple[Letter, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim found. `watermark` is None where the store holds nothing of the partition."""

    token: str
    watermark: Watermark | None
    outbox: tuple[OutboxEntry, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """States of the users asked for and the watermark they belong to, read atomically."""

    token: str
    watermark: Watermark | None
    states: list[bytes | None]  # in the order asked


@dataclass(frozen=True, slots=True)
class Listed:
    """What the last commit that published a user left beside the states, read atomically.

    None: not there. rank and due_ms as in `Write`; due_ms is this store's own.
    """

    document: bytes | None = None
    rank: float | None = None
    due_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """What a commit writes of one user."""

    user: str
    state: bytes  # featurestore state and scoring carry, packed; b"" deletes it
    document: bytes | None = None  # None leaves the reader's key alone, b"" deletes it (erased)
    rank: float | None = None  # headline expected value, for the ranking
    due_ms: int | None = None  # when silence will have moved the value enough to say so


@dataclass(frozen=True, slots=True)
class Commit:
    """One atomic step of a partition: `expected` -> `watermark`."""

    token: str
    expected: Watermark | None  # None: the store holds nothing of this partition yet
    watermark: Watermark  # as it shall stand afterwards, identity included
    writes: Sequence[Write] = ()
    letters: Sequence[Letter] = ()
    publishes: bool = True  # False: builders and backfills write no outbox and no documents


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """One store as `livevalue stores ls` shows it."""

    name: str
    active: bool
    generation: str
    fingerprint: str
    positions: dict[int, tuple[int, ...]]  # partition -> positions


@dataclass(frozen=True, slots=True)
class Meta:
    """`lv:meta`: what a reader must know to find and read values."""

    schema: int
    partitions: int
    partitioner: str
    unit: dict[str, str]
    horizons: tuple[str, ...]
    store: str
    clock: str  # "wall" | "log"
    extra: dict[str, str] = field(default_factory=dict)


class FeatureStore(Protocol):
    """A named store of one deployment. One round trip to load, one to commit."""

    name: str

    async def claim(self, partition: int) -> Claim: ...
    async def load(self, partition: int, users: Sequence[str]) -> Loaded: ...
    async def commit(self, partition: int, commit: Commit) -> CommitOutcome:
        """Everything of `commit`, or nothing.

        A commit that publishes writes outbox, documents and ranking; it is FENCED on a store
        that is not the active one, and makes its store active where none is. One that does not
        publish writes states and watermark only; on the active store it raises StoreError.
        The watermark's `published` never goes back by a commit. StoreUnavailable leaves the
        outcome unknown: claim again and look.
        """
        ...

    async def trim(self, partition: int, token: str, published: Identity) -> bool:
        """Drop outbox entries before `published`, keep that one; False when fenced.

        Where the outbox does not hold `published` nothing is dropped. The watermark's
        `published` is set either way.
        """
        ...

    async def due(self, partition: int, now_ms: int, limit: int) -> list[str]:
        """Users whose silence is due a new value, earliest first."""
        ...

    async def scan(self, partition: int, cursor: str, limit: int) -> tuple[list[str], str]:
        """User ids that the store holds, in pages; cursor "" starts and ends the walk.

        A page holds about `limit`. Users that are there throughout come at least once; one may
        come twice while the keyspace grows.
        """
        ...

    async def scan_documents(
        self, partition: int, cursor: str, limit: int
    ) -> tuple[list[str], str]:
        """User ids that have a document, in pages as `scan` gives them.

        After a flip some may be of users of whom this store knows nothing.
        """
        ...

    async def active(self, partition: int) -> str | None:
        """Name of the store that serves readers of this partition."""
        ...

    async def next(self, partition: int) -> str | None:
        """Name of the store that the partition's owner shall take over, if one is announced."""
        ...

    async def set_next(self, partition: int, name: str | None) -> None:
        """Announce a store that was built aside, or take the announcement back."""
        ...

    async def flip(self, partition: int, token: str, other: str, other_token: str) -> CommitOutcome:
        """Make `other` the active store; refused unless both stand at equal positions.

        `token` is ours in this (active) store, `other_token` ours in the other. The other's
        watermark takes over our last identity and published identity, so that seq goes on.
        """
        ...

    def sibling(self, name: str) -> FeatureStore:
        """Another store of this deployment, over the same connections; closed with this one."""
        ...

    async def others(self, partition: int) -> list[str]:
        """Names of the stores that hold something of the partition and do not serve it."""
        ...

    async def forget(self, partition: int, rows: Sequence[tuple[str, bytes, bytes]]) -> int:
        """Replace states (user, as read, as it shall be) of a store that does not serve.

        A state that somebody has written since is left alone, as is all of a store that has come
        to serve. -> states replaced.
        """
        ...

    async def drop(self, partition: int) -> int:
        """Delete this store's keys of the partition; refused for the active one. -> keys."""
        ...

    async def reset(
        self,
        partition: int,
        token: str,
        watermark: Watermark,
        *,
        wipe: bool,
        published: Identity | None = None,
    ) -> CommitOutcome:
        """Write `watermark` by force, in recovery: OK, or FENCED where `token` is not ours.

        The store becomes the active one and an announcement is taken back. The outbox then
        holds one entry, of nobody and under `published`, so that a claim finds what was published
        last; None leaves it empty, which an owner takes for a roll-back. seq is raised to what the
        partition has committed before; the watermark's own `published` is `published`.

        wipe: this store's states and the partition's documents and ranking go first. Broken off
        in between, the store is refused to all (StoreHalfDone) until a wipe has ended; a wipe of
        such a store takes any token.
        """
        ...

    async def document(self, partition: int, user: str) -> bytes | None: ...
    async def documents(self, partition: int, users: Sequence[str]) -> list[bytes | None]: ...
    async def listed(self, partition: int, users: Sequence[str]) -> list[Listed]: ...
    async def top(self, partition: int, n: int) -> list[tuple[str, float]]: ...
    async def meta(self) -> Meta | None: ...
    async def set_meta(self, meta: Meta) -> None: ...
    async def stores(self) -> list[StoreInfo]: ...
    async def blob(self, key: str) -> bytes | None:
        """A file of the registry kept beside the stores (`lv:blob:<key>`)."""
        ...

    async def put_blob(self, key: str, data: bytes) -> None: ...
    async def close(self) -> None: ...
