"""One row of a store: the featurestore's blob and the scorer's, joined and split only here.

Layout: length of the first, 4 bytes little-endian, then both.
"""

from __future__ import annotations

import struct

from featurestore.errors import StateFormatError

_LENGTH = struct.Struct("<I")


def join(state: bytes, score: bytes) -> bytes:
    """One row of the store.

    >>> split(join(b"state", b"score"))
    (b'state', b'score')
    """
    return _LENGTH.pack(len(state)) + state + score


def split(row: bytes) -> tuple[bytes, bytes]:
    """The two halves of a row; StateFormatError where it is damaged."""
    if len(row) < 4:
        raise StateFormatError("a state of fewer than 4 bytes: restore the store or rebuild it")
    end = 4 + int(_LENGTH.unpack_from(row)[0])
    if end > len(row):
        raise StateFormatError("a state is cut short: restore the store or rebuild it")
    return row[4:end], row[end:]
