"""A part of the users, the same at every call; and how many users there are, in bounded memory.

By a hash that has nothing to do with the one that holds users out of training (a CRC of a salted
name): CRCs of equally long names differ from their salted ones by one constant, so a part drawn by
CRC could hold no held-out user at all, or none but those.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

_BITS = 64


def place(user: str) -> int:
    """Where a user stands in [0, 2^64), evenly and for good."""
    return int.from_bytes(hashlib.blake2b(user.encode(), digest_size=_BITS // 8).digest())


def drawn(user: str, share: float) -> bool:
    """Is he of the part? A smaller part lies within every larger one.

    >>> 400 < sum(drawn(f"u{n}", 0.5) for n in range(1000)) < 600
    True
    >>> drawn("ada", 1.0)
    True
    """
    return share >= 1 or place(user) < share * (1 << _BITS)


class Distinct:
    """Counts distinct users: exactly up to `most`, beyond by a sample of at least half of that.

    The standard error is then about 1 / sqrt(most / 2): adaptive sampling, Wegman; Flajolet 1990.

    >>> few = Distinct(most=100)
    >>> few.add(f"u{n % 50}" for n in range(1000))
    >>> few.count
    50
    """

    def __init__(self, most: int = 1 << 17) -> None:
        self._most = most
        self._level = 0  # only places below 2^(64 - level) are kept
        self._kept: set[int] = set()

    def add(self, users: Iterable[str]) -> None:
        """Some users, seen before or not."""
        for user in users:
            where = place(user)
            if where >> (_BITS - self._level) == 0:
                self._kept.add(where)
        while len(self._kept) > self._most:
            self._level += 1
            self._kept = {p for p in self._kept if p >> (_BITS - self._level) == 0}

    @property
    def count(self) -> int:
        """How many, by what is kept."""
        return len(self._kept) << self._level
