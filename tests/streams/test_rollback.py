"""What tells a roll-back of Redis from progress: the identity of a commit, both halves of it."""

from __future__ import annotations

from featurestore.store import Identity, OutboxEntry
from streams.emit import Published
from streams.rollback import unpublished


def published(seq: int, writer: str) -> Published:
    return Published(Identity(seq, writer), (5,), "log")


def test_what_follows_the_published_entry_is_to_be_published() -> None:
    outbox = [OutboxEntry(Identity(n, "w"), (f"u{n}",)) for n in (6, 7, 8)]
    assert unpublished(outbox, None) == outbox
    assert unpublished(outbox, Identity(7, "w")) == outbox[2:]
    assert unpublished(outbox, Identity(8, "w")) == []


def test_an_entry_of_the_same_number_by_another_writer_is_a_roll_back() -> None:
    # Two masters at once: each goes on from 6, and 7 of the one that lost was published.
    outbox = [OutboxEntry(Identity(6, "w"), ("ada",)), OutboxEntry(Identity(7, "other"), ("bob",))]
    assert unpublished(outbox, Identity(7, "w")) is None
    assert unpublished(outbox, Identity(9, "other")) is None
