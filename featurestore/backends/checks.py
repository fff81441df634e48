"""What all backends share: what a commit must be like, and what refusals say.

Wrong commits are faults of the caller, not of the store's state, so they raise StoreError; what
depends on the store's state is answered with a CommitOutcome.
"""

from __future__ import annotations

from math import isfinite

from featurestore.errors import StoreError, StoreHalfDone
from featurestore.store import Commit, StoreInfo, Watermark


def check(commit: Commit) -> None:
    """Raise StoreError where `commit` could be no step of any store.

    A state b"" deletes the user's state; a rank without a document is left out.
    """
    after, before = commit.watermark, commit.expected
    sources = len(after.positions)
    for name, column in (("clocks", after.clocks), ("marks", after.marks)):
        if len(column) != sources:
            raise StoreError(f"a commit has {sources} positions, but {len(column)} {name}")
    for name, given in (("idle flags", after.idle), ("trails", after.trails)):
        if given and len(given) != sources:
            raise StoreError(f"a commit has {sources} positions, but {len(given)} {name}")
    if min(after.positions, default=0) < 0:
        raise StoreError(f"a commit has a negative position: {after.positions}")
    if before is not None:
        if len(before.positions) != sources:
            raise StoreError(
                f"a commit goes from {len(before.positions)} sources to {sources}: another list "
                "of topics needs another store (`livevalue backfill --store`)"
            )
        if any(b > a for b, a in zip(before.positions, after.positions, strict=True)):
            raise StoreError(f"a commit goes back from {before.positions} to {after.positions}")
    if after.identity.seq <= (before.identity.seq if before else 0):
        raise StoreError(f"a commit must raise seq, not leave it at {after.identity.seq}")
    users = {w.user for w in commit.writes}
    if len(users) != len(commit.writes):
        raise StoreError("a commit names a user twice: join the user's writes into one")
    try:
        "".join(users).encode()
    except UnicodeEncodeError:
        raise StoreError("a commit names a user whose id is not text (a lone surrogate)") from None
    if "" in users:
        raise StoreError("a commit names a user without an id")
    for w in commit.writes:
        if w.rank is not None and not isfinite(w.rank):
            raise StoreError(f"a commit ranks user {w.user!r} at {w.rank}: ranks are finite")


def infos(marks: dict[str, dict[int, Watermark]], active: set[str]) -> list[StoreInfo]:
    """Stores by name, told from the watermarks of their partitions.

    A store is active where it serves at least one partition: while stores flip one partition
    after the other, two are.
    """
    return [
        StoreInfo(
            name=name,
            active=name in active,
            generation=next(iter(held.values())).generation,
            fingerprint=next(iter(held.values())).fingerprint,
            positions={p: mark.positions for p, mark in sorted(held.items())},
        )
        for name, held in sorted(marks.items())
    ]


def builds_active(store: str) -> str:
    """Why a commit that publishes nothing is refused on the store that serves readers."""
    return (
        f"store {store!r} serves readers, so a builder must not write it: readers would miss "
        "what it folds. Name another store with --store"
    )


def drops_active(store: str, partition: int) -> str:
    """Why the store that serves readers is not dropped."""
    return (
        f"store {store!r} serves readers of partition {partition}, or is about to: flip to another "
        "store first (`livevalue stores flip`)"
    )


def half_done(how: str, name: str = "") -> StoreHalfDone:
    """Of a store whose watermark is marked as being dropped, `how` by the mark."""
    which = f"store {name!r}" if name else "this store"
    if how == "wipe":
        return StoreHalfDone(
            f"{which} was wiped halfway: run `livevalue recover wipe` again to finish it"
        )
    return StoreHalfDone(
        f"{which} was dropped halfway: run `livevalue stores drop {name or 'NAME'}` again to "
        "finish it"
    )
