"""Bytes of a user's state, versioned, with a checksum.

Layout of versions 1 and 2, little-endian, all parts multiples of 4 bytes:

    HEADER | settled STATE | head STATE if there is a tail | tail EVENT* | ids SEEN* | ring SEEN*

`check` is the sum of all 32-bit words (with `check` itself as 0) modulo 2^32, so that a flipped
bit or a cut end is found. Per user Python only slices and joins; the rest is done over all users
at once. Every version is read, the last one is written: a state is rolled forward when it is next
committed. A later version adds its layout here; a golden file holds each.

Version 2 adds MARKS to the header. Of what version 1 settled nothing is known: it counts as
settled in order, and from before any erasure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featurestore.columns import EVENT
from featurestore.errors import StateFormatError
from featurestore.rows import Records, Rows, copied, put, starts_of
from featurestore.state import MARKS, SEEN, STATE, States, unmarked

VERSION = 2

_HEADER_1 = np.dtype(
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
HEADER = np.dtype([*((n, _HEADER_1[n]) for n in _HEADER_1.names or ()), ("marks", MARKS)])
_HEADERS = {1: _HEADER_1, 2: HEADER}
Ints = npt.NDArray[np.int64]

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
    header["marks"] = states.marks
    header["check"] = _checks(header, states)

    # Header and both sides of each user in one row, of which users without a tail take less.
    front = np.empty((users, _H + 2 * _S), np.uint8)
    front[:, :_H] = header.view(np.uint8).reshape(users, _H)
    front[:, _H : _H + _S] = states.settled.view(np.uint8).reshape(users, _S)
    front[:, _H + _S :] = states.head.view(np.uint8).reshape(users, _S)
    begin = np.arange(users) * front.shape[1]
    pieces = [_cut(front.tobytes(), begin, begin + _H + _S + (tails > 0) * _S)]
    for rows, size in ((states.tail, _E), (states.ids, _N), (states.ring, _N)):
        if len(rows.values):
            starts = rows.starts * size
            pieces.append(_cut(rows.values.tobytes(), starts[:-1], starts[1:]))
    return list(map(b"".join, zip(*pieces, strict=True)))


def _cut(data: bytes, begins: Ints, ends: Ints) -> list[bytes]:
    return [data[a:b] for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]


def decode(users: Sequence[str], blobs: Sequence[bytes | None]) -> States:
    """States from their bytes; StateFormatError names the first user whose bytes are damaged."""
    rows = [u for u, blob in enumerate(blobs) if blob is not None]
    if not rows:
        return States.empty(users)
    some = len(rows) < len(users)
    found = [blob for blob in blobs if blob is not None]
    states = _decode_all([users[u] for u in rows] if some else list(users), found)
    if not some:
        return states
    everyone = States.empty(users)
    at = np.array(rows, np.intp)
    put(everyone.settled, at, states.settled)
    put(everyone.head, at, states.head)
    put(everyone.marks, at, states.marks)
    everyone.erased_ms[at] = states.erased_ms
    everyone.tail = everyone.tail.replace(at, states.tail)
    everyone.ids = everyone.ids.replace(at, states.ids)
    everyone.ring = everyone.ring.replace(at, states.ring)
    return everyone


def _decode_all(users: list[str], blobs: Sequence[bytes]) -> States:
    """Each version on its own, then all in the order of `users`."""
    versions = {blob[0] if blob else VERSION for blob in blobs}
    if versions == {VERSION}:
        return _decode(users, blobs, HEADER)
    parts, order = [], []
    for version in sorted(versions):
        rows = [u for u, blob in enumerate(blobs) if (blob[0] if blob else VERSION) == version]
        names = [users[u] for u in rows]
        header = _HEADERS.get(version)
        if header is None:
            raise StateFormatError(_unreadable(names[0], version))
        parts.append(_decode(names, [blobs[u] for u in rows], header))
        order += rows
    return States.concat(parts).select(np.argsort(np.array(order, np.intp)))


def _decode(users: Sequence[str], blobs: Sequence[bytes], layout: np.dtype[np.void]) -> States:
    n, h = len(blobs), layout.itemsize
    sizes = np.fromiter(map(len, blobs), np.int64, n)
    _refuse(users, sizes < h + _S, "cut short")
    front = np.frombuffer(b"".join([blob[: h + _S] for blob in blobs]), np.uint8)
    front = front.reshape(n, h + _S)
    header = front[:, :h].copy().view(layout)[:, 0]
    tails = header["tail"].astype(np.int64)
    ids = header["ids"].astype(np.int64)
    rings = header["ring"].astype(np.int64)
    stored = header["head"].astype(bool)
    head_end = h + _S + stored * _S
    tail_end = head_end + tails * _E
    ids_end = tail_end + ids * _N
    wrong = (sizes != ids_end + rings * _N) | (stored != (tails > 0)) | (header["head"] > 1)
    _refuse(users, wrong, "of a wrong length")

    settled = front[:, h:].copy().view(STATE)[:, 0]
    head = copied(settled)
    at = np.flatnonzero(stored)
    if len(at):
        cut = [blobs[u][h + _S : h + _S + _S] for u in at.tolist()]
        put(head, at, np.frombuffer(b"".join(cut), STATE))
    states = States(
        list(users),
        settled,
        head,
        _rows(blobs, head_end, tails, EVENT),
        _rows(blobs, tail_end, ids, SEEN),
        _rows(blobs, ids_end, rings, SEEN),
        header["erased_ms"].copy(),
        copied(header["marks"]) if layout is HEADER else unmarked(n),
    )
    unchecked = copied(header)
    unchecked["check"] = 0
    wrong = _checks(unchecked, states) != header["check"]
    _refuse(users, wrong, "damaged: its checksum differs")
    return states


def _checks(header: Records, states: States) -> Ints:
    """Checksum of each user's state, `check` in the header being 0."""
    each = np.arange(len(header) + 1)
    sums = _sums(header, each * header.dtype.itemsize)
    sums += _sums(states.settled, each * _S)
    sums += np.where(header["head"] > 0, _sums(states.head, each * _S), 0)
    for rows, size in ((states.tail, _E), (states.ids, _N), (states.ring, _N)):
        sums += _sums(rows.values, rows.starts * size)
    return sums & 0xFFFFFFFF


def _rows(blobs: Sequence[bytes], begins: Ints, lengths: Ints, dtype: np.dtype[np.void]) -> Rows:
    ends = begins + lengths * dtype.itemsize
    each = zip(blobs, begins.tolist(), ends.tolist(), strict=True)
    data = b"".join([blob[a:b] for blob, a, b in each]) if lengths.any() else b""
    return Rows(np.frombuffer(data, dtype), starts_of(lengths))


def _sums(values: Records, starts: Ints) -> Ints:
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
        raise StateFormatError(_damaged(users[int(np.argmax(wrong))], what))


def _unreadable(user: str, version: int) -> str:
    if version <= VERSION:
        return _damaged(user, "of an unknown version")
    return (
        f"the state of user {user!r} has format {version}, and this version reads up to {VERSION}: "
        "run the newer version that wrote it; if there was none, it is damaged: rebuild the store"
    )


def _damaged(user: str, what: str) -> str:
    return f"the state of user {user!r} is {what}: restore the store or rebuild it from the log"
