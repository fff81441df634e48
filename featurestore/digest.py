"""Digest of what is folded: equal for equal logs, whatever the order of users and partitions.

Exact fields only, of the head: per user the sums of its identities' hashes modulo 2^64, counts
and money. A user of whom nothing is folded (never seen, or erased) counts for nothing. Users are
hashed one by one and added modulo 2^128, so partitions and pages can come in any order.

>>> Digest().hex()
'00000000000000000000000000000000'
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.state import States

EXACT = np.dtype(
    [
        ("id_hi", "<u8"),
        ("id_lo", "<u8"),
        ("browses", "<u4"),
        ("purchases", "<u4"),
        ("interactions", "<u4"),
        ("orders", "<u4"),
        ("refunds", "<u4"),
        ("gross_micro", "<i8"),
        ("refunded_micro", "<i8"),
    ]
)


def exact_fields(states: States) -> npt.NDArray[np.void]:
    """Exact fields (U,) EXACT of the heads: equal for equal logs, bit by bit."""
    head = states.head
    out = np.empty(len(head), EXACT)
    for k, name in enumerate(("browses", "purchases", "interactions")):
        out[name] = head["counts"][:, k]
    for name in ("id_hi", "id_lo", "orders", "refunds", "gross_micro", "refunded_micro"):
        out[name] = head[name]
    return out


@dataclass(slots=True)
class Digest:
    """Adds up states; `merge` joins digests of disjoint users."""

    total: int = 0
    users: int = 0  # with at least one event
    applied: int = 0  # events folded

    def add(self, states: States) -> None:
        """Count these users; each user once over the digest's life."""
        rows = np.flatnonzero(states.known())
        data, width = exact_fields(states)[rows].tobytes(), EXACT.itemsize
        total = 0
        for i, row in enumerate(rows.tolist()):
            said = hashlib.blake2b(states.users[row].encode(), digest_size=16)
            said.update(b"\0" + data[i * width : (i + 1) * width])
            total += int.from_bytes(said.digest(), "little")
        self.total = (self.total + total) % (1 << 128)
        self.users += len(rows)
        self.applied += int(states.head["counts"][rows].sum())

    def merge(self, other: Digest) -> None:
        """Add a digest of other users."""
        self.total = (self.total + other.total) % (1 << 128)
        self.users += other.users
        self.applied += other.applied

    def hex(self) -> str:
        """32 hexadecimal digits."""
        return f"{self.total:032x}"
