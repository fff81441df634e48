"""Bytes of a user's state, versioned, with a checksum.

Layout, little-endian, all parts multiples of 4 bytes:

    HEADER | settled side | head side if there is a tail | tail EVENT* | ids SEEN* | ring SEEN*
           | of version 3: edges of the settled side | edges of the head if there is a tail

A side is the first PLAIN bytes of STATE, edges are the rest of it.

`check` is the sum of all 32-bit words (with `check` itself as 0) modulo 2^32, so that a flipped
bit or a cut end is found. Per user Python only slices and joins; the rest is done over all users
at once. Every version is read, and a state is rolled forward when it is next committed. A later
version adds its layout here; a golden file holds each.

Version 2 adds MARKS to the header. Of what version 1 settled nothing is known: it counts as
settled in order, and from before any erasure. Version 3 adds the edges, and is written of users
alone who have one, so that a deployment without the setting `social` keeps version 2 to the byte.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featurestore.columns import EVENT
from featurestore.errors import StateFormatError
from featurestore.rows import Records, Rows, copied, put, starts_of
from featurestore.state import MARKS, PLAIN, SEEN, STATE, States, blank, unmarked

VERSION = 3  # of users with an edge
WITHOUT_EDGES = 2  # of all others

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
_HEADERS = {1: _HEADER_1, 2: HEADER, 3: HEADER}
Ints = npt.NDArray[np.int64]

_H, _S, _E, _N = HEADER.itemsize, PLAIN, EVENT.itemsize, SEEN.itemsize
_WIDE = STATE.itemsize
_MORE = _WIDE - PLAIN  # bytes of a side's edges


def encode(states: States) -> list[bytes]:
    """Bytes of each user's state."""
    users = len(states.users)
    if not users:
        return []
    tails, ids, rings = states.tail.lengths, states.ids.lengths, states.ring.lengths
    header = np.zeros(users, HEADER)
    edged = states.head["edges"] > 0
    header["version"] = np.where(edged, VERSION, WITHOUT_EDGES)
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
    settled, head = _bytes(states.settled), _bytes(states.head)
    front[:, _H : _H + _S] = settled[:, :_S]
    front[:, _H + _S :] = head[:, :_S]
    begin = np.arange(users) * front.shape[1]
    pieces = [_cut(front.tobytes(), begin, begin + _H + _S + (tails > 0) * _S)]
    for rows, size in ((states.tail, _E), (states.ids, _N), (states.ring, _N)):
        if len(rows.values):
            starts = rows.starts * size
            pieces.append(_cut(rows.values.tobytes(), starts[:-1], starts[1:]))
    if edged.any():
        both = np.concatenate([settled[:, _S:], head[:, _S:]], axis=1)
        begin = np.arange(users) * both.shape[1]
        pieces.append(_cut(both.tobytes(), begin, begin + edged * (1 + (tails > 0)) * _MORE))
    return list(map(b"".join, zip(*pieces, strict=True)))


def _bytes(sides: Records) -> npt.NDArray[np.uint8]:
    """(U, bytes of STATE)"""
    return sides.view(np.uint8).reshape(len(sides), _WIDE)


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
    versions = [blob[0] if blob else VERSION for blob in blobs]
    if unknown := set(versions) - set(_HEADERS):
        at = next(u for u, version in enumerate(versions) if version in unknown)
        raise StateFormatError(_unreadable(users[at], versions[at]))
    # Versions of one header are read together.
    if {_HEADERS[version].itemsize for version in set(versions)} == {_H}:
        return _decode(users, blobs, HEADER)
    parts, order = [], []
    for header in (_HEADER_1, HEADER):
        rows = [u for u, version in enumerate(versions) if _HEADERS[version] is header]
        if rows:
            parts.append(_decode([users[u] for u in rows], [blobs[u] for u in rows], header))
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
    edged = header["version"] == VERSION
    head_end = h + _S + stored * _S
    tail_end = head_end + tails * _E
    ids_end = tail_end + ids * _N
    ring_end = ids_end + rings * _N
    wrong = sizes != ring_end + edged * (1 + stored) * _MORE
    wrong |= (stored != (tails > 0)) | (header["head"] > 1)
    _refuse(users, wrong, "of a wrong length")

    settled = blank(n)
    _bytes(settled)[:, :_S] = front[:, h:]
    _put_edges(settled, np.flatnonzero(edged), blobs, ring_end)
    head = copied(settled)
    at = np.flatnonzero(stored)
    if len(at):
        cut = [blobs[u][h + _S : h + _S + _S] for u in at.tolist()]
        _bytes(head)[at, :_S] = np.frombuffer(b"".join(cut), np.uint8).reshape(len(at), _S)
        _put_edges(head, np.flatnonzero(edged & stored), blobs, ring_end + _MORE)
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


def _put_edges(sides: Records, at: Ints, blobs: Sequence[bytes], begins: Ints) -> None:
    """Set the edges of the sides at `at`, in place; `begins` (U,) where they stand."""
    if len(at):
        cut = [blobs[u][begins[u] : begins[u] + _MORE] for u in at.tolist()]
        _bytes(sides)[at, _S:] = np.frombuffer(b"".join(cut), np.uint8).reshape(len(at), _MORE)


def _checks(header: Records, states: States) -> Ints:
    """Checksum of each user's state, `check` in the header being 0."""
    each = np.arange(len(header) + 1)
    edged = header["version"] == VERSION
    sums = _sums(header, each * header.dtype.itemsize)
    sums += _side_sums(states.settled, edged)
    sums += np.where(header["head"] > 0, _side_sums(states.head, edged), 0)
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


def _side_sums(sides: Records, edged: npt.NDArray[np.bool_]) -> Ints:
    """Sum of the 32-bit words of each side, as far as it is stored."""
    sums = _sums(sides, np.arange(len(sides) + 1) * _WIDE)
    more = sides.view("<u4").reshape(len(sides), _WIDE // 4)[:, _S // 4 :]
    return sums - np.where(edged, 0, more.sum(axis=1, dtype=np.int64))


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
