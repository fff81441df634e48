"""Bytes of a user's state, versioned, with a checksum.

Layout of version 1, little-endian, all parts multiples of 4 bytes:

    HEADER | settled STATE | head STATE if there is a tail | tail EVENT* | ids SEEN* | ring SEEN*

`check` is the sum of all 32-bit words (with `check` itself as 0) modulo 2^32, so that a flipped
bit or a cut end is found. Per user Python only slices and joins; the rest is done over all users
at once. A later version adds its layout here and keeps reading this one; a golden file holds it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featurestore.columns import EVENT
from featurestore.errors import StateFormatError
from featurestore.rows import Records, Rows, copied, put, starts_of
from featurestore.state import SEEN, STATE, States

VERSION = 1

HEADER = np.dtype(
    [
        ("version", "u1"),
        ("head", "u1"),  # whether a head is stored
        ("pad", "u1", (2,)),
        ("tail", "<u4"),  # number of events
        ("ids", "<u4"),
        ("ring", "<u4"),
        ("check", "<u4"),
        ("erased_ms", "<i8"),
    ]
)
_H, _S, _E, _N = HEADER.itemsize, STATE.itemsize, EVENT.itemsize, SEEN.itemsize


def encode(states: States) -> list[bytes]:
    """Bytes of each user's state."""
    users = len(states.users)
    if not users:
        return []
    tails, ids, rings = states.tail.lengths, states.ids.lengths, states.ring.lengths
    header = np.zeros(users, HEADER)
    header["version"] = VERSION
    header["head"] = tails > 0
    header["tail"] = tails
    header["ids"] = ids
    header["ring"] = rings
    header["erased_ms"] = states.erased_ms
    header["check"] = _checks(header, states)

    heads = _slices(header.tobytes(), _H, users)
    settled = _slices(states.settled.tobytes(), _S, users)
    head_bytes = states.head.tobytes()
    tail_bytes = states.tail.values.tobytes()
    ends = (states.tail.starts * _E).tolist()
    blobs = [
        (
            heads[u] + settled[u]
            if ends[u] == ends[u + 1]
            else heads[u]
            + settled[u]
            + head_bytes[u * _S : u * _S + _S]
            + tail_bytes[ends[u] : ends[u + 1]]
        )
        for u in range(users)
    ]
    for rows in (states.ids, states.ring):
        data = rows.values.tobytes()
        ends = (rows.starts * _N).tolist()
        for u in np.flatnonzero(rows.lengths).tolist():
            blobs[u] += data[ends[u] : ends[u + 1]]
    return blobs


def decode(users: Sequence[str], blobs: Sequence[bytes | None]) -> States:
    """States from their bytes; StateFormatError names the first user whose bytes are damaged."""
    rows = [u for u, blob in enumerate(blobs) if blob]
    if not rows:
        return States.empty(users)
    some = len(rows) < len(users)
    found = [blob for blob in blobs if blob]
    states = _decode([users[u] for u in rows] if some else users, found)
    if not some:
        return states
    everyone = States.empty(users)
    at = np.array(rows, np.intp)
    put(everyone.settled, at, states.settled)
    put(everyone.head, at, states.head)
    everyone.erased_ms[at] = states.erased_ms
    everyone.tail = everyone.tail.replace(at, states.tail)
    everyone.ids = everyone.ids.replace(at, states.ids)
    everyone.ring = everyone.ring.replace(at, states.ring)
    return everyone


def _decode(users: Sequence[str], blobs: Sequence[bytes]) -> States:
    n = len(blobs)
    sizes = np.fromiter(map(len, blobs), np.int64, n)
    _refuse(users, sizes < _H + _S, "cut short")
    joined = b"".join([blob[:_H] for blob in blobs])
    header = np.frombuffer(joined, HEADER)
    _refuse(users, header["version"] != VERSION, "of an unknown version")
    tails = header["tail"].astype(np.int64)
    ids = header["ids"].astype(np.int64)
    rings = header["ring"].astype(np.int64)
    stored = header["head"].astype(bool)
    head_end = _H + _S + stored * _S
    tail_end = head_end + tails * _E
    ids_end = tail_end + ids * _N
    wrong = (sizes != ids_end + rings * _N) | (stored != (tails > 0)) | (header["head"] > 1)
    _refuse(users, wrong, "of a wrong length")

    settled = np.frombuffer(bytearray(b"".join([b[_H : _H + _S] for b in blobs])), STATE)
    head = copied(settled)
    at = np.flatnonzero(stored)
    if len(at):
        cut = [blobs[u][_H + _S : _H + _S + _S] for u in at.tolist()]
        put(head, at, np.frombuffer(b"".join(cut), STATE))
    states = States(
        list(users),
        settled,
        head,
        _rows(blobs, head_end, tails, EVENT),
        _rows(blobs, tail_end, ids, SEEN),
        _rows(blobs, ids_end, rings, SEEN),
        header["erased_ms"].copy(),
    )
    unchecked = copied(header)
    unchecked["check"] = 0
    wrong = _checks(unchecked, states) != header["check"]
    _refuse(users, wrong, "damaged: its checksum differs")
    return states


def _checks(header: Records, states: States) -> npt.NDArray[np.int64]:
    """Checksum of each user's state, `check` in the header being 0."""
    each = np.arange(len(header) + 1)
    sums = _sums(header, each * _H)
    sums += _sums(states.settled, each * _S)
    sums += np.where(header["head"] > 0, _sums(states.head, each * _S), 0)
    for rows, size in ((states.tail, _E), (states.ids, _N), (states.ring, _N)):
        sums += _sums(rows.values, rows.starts * size)
    return sums & 0xFFFFFFFF


def _rows(
    blobs: Sequence[bytes],
    begins: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    dtype: np.dtype[np.void],
) -> Rows:
    at = np.flatnonzero(lengths).tolist()
    ends = (begins + lengths * dtype.itemsize).tolist()
    first = begins.tolist()
    data = b"".join([blobs[u][first[u] : ends[u]] for u in at])
    return Rows(np.frombuffer(data, dtype), starts_of(lengths))


def _slices(data: bytes, size: int, n: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, n * size, size)]


def _sums(values: Records, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sum of the 32-bit words of each row; `starts` are in bytes."""
    sums = np.zeros(len(starts) - 1, np.int64)
    rows = np.flatnonzero(np.diff(starts))
    if len(rows):
        words = values.view("<u4")
        # Rows without a word would make reduceat repeat the next row's first one.
        sums[rows] = np.add.reduceat(words, starts[rows] // 4, dtype=np.int64)
    return sums


def _refuse(users: Sequence[str], wrong: npt.NDArray[np.bool_], what: str) -> None:
    if wrong.any():
        user = users[int(np.argmax(wrong))]
        raise StateFormatError(
            f"the state of user {user!r} is {what}: restore the store or rebuild it from the log"
        )
