"""Bytes of a user's state, versioned, with a checksum.

Layout, little-endian, all parts multiples of 4 bytes:

    HEADER | settled side | head side if there is a tail | tail EVENT* | ids SEEN* | ring SEEN*
           | of version 3: edges of the settled side | edges of the head if there is a tail

A side is the first PLAIN bytes of STATE and an event the first BARE ones of EVENT, edges are what
comes next of STATE. Of version 4 sides and events are whole, and nothing stands behind the ring.

`check` is the sum of all 32-bit words (with `check` itself as 0) modulo 2^32, so that a flipped
bit or a cut end is found. Per user Python only slices and joins; the rest is done over all users
at once. Every version is read, and a state is rolled forward when it is next committed. A later
version adds its layout here; a golden file holds each.

Version 2 adds MARKS to the header. Of what version 1 settled nothing is known: it counts as
settled in order, and from before any erasure. Version 3 adds the edges and version 4 the words
of interests; each is written of users alone who have one, so that a deployment without the settings
`social` and `interests` keeps version 2 to the byte.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featurestore.columns import BARE, EVENT
from featurestore.errors import StateFormatError
from featurestore.rows import Records, Rows, copied, put, starts_of
from featurestore.state import EDGED, MARKS, PLAIN, SEEN, STATE, States, blank, unmarked

VERSION = 4  # of users with a word
WITH_EDGES = 3  # of others with an edge
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
_HEADERS = {1: _HEADER_1, 2: HEADER, 3: HEADER, 4: HEADER}
Ints = npt.NDArray[np.int64]

_H, _S, _E, _N = HEADER.itemsize, PLAIN, BARE, SEEN.itemsize
_WIDE, _WHOLE = STATE.itemsize, EVENT.itemsize
_MORE = EDGED - PLAIN  # bytes of a side's edges


def encode(states: States) -> list[bytes]:
    """Bytes of each user's state."""
    worded = np.zeros(len(states.users), bool)
    for side in (states.settled, states.head):
        worded |= side["words"].any(axis=1)
    # Words of an event in the tail may have faded to nothing in the head.
    worded[states.tail.owner[states.tail.values["words"].any(axis=1)]] = True
    if worded.all() or not worded.any():
        return _encode(states, bool(worded.any()))
    out = [b""] * len(worded)
    for whole in (False, True):
        rows = np.flatnonzero(worded == whole)
        for row, blob in zip(rows.tolist(), _encode(states.select(rows), whole), strict=True):
            out[row] = blob
    return out


def _encode(states: States, whole: bool) -> list[bytes]:
    """Of users who all have words, or none of whom has."""
    users = len(states.users)
    if not users:
        return []
    side, event = (_WIDE, _WHOLE) if whole else (_S, _E)
    tails, ids, rings = states.tail.lengths, states.ids.lengths, states.ring.lengths
    header = np.zeros(users, HEADER)
    edged = states.head["edges"] > 0
    header["version"] = VERSION if whole else np.where(edged, WITH_EDGES, WITHOUT_EDGES)
    header["head"] = tails > 0
    header["tail"] = tails
    header["ids"] = ids
    header["ring"] = rings
    header["erased_ms"] = states.erased_ms
    header["marks"] = states.marks
    header["check"] = _checks(header, states)

    # Header and both sides of each user in one row, of which users without a tail take less.
    front = np.empty((users, _H + 2 * side), np.uint8)
    front[:, :_H] = header.view(np.uint8).reshape(users, _H)
    settled, head = _bytes(states.settled), _bytes(states.head)
    front[:, _H : _H + side] = settled[:, :side]
    front[:, _H + side :] = head[:, :side]
    begin = np.arange(users) * front.shape[1]
    pieces = [_cut(front.tobytes(), begin, begin + _H + side + (tails > 0) * side)]
    for rows, size in ((states.tail, event), (states.ids, _N), (states.ring, _N)):
        if len(rows.values):
            starts = rows.starts * size
            data = _bytes(rows.values)[:, :size].tobytes()
            pieces.append(_cut(data, starts[:-1], starts[1:]))
    if edged.any() and not whole:
        both = np.concatenate([settled[:, _S : _S + _MORE], head[:, _S : _S + _MORE]], axis=1)
        begin = np.arange(users) * both.shape[1]
        pieces.append(_cut(both.tobytes(), begin, begin + edged * (1 + (tails > 0)) * _MORE))
    return list(map(b"".join, zip(*pieces, strict=True)))


def _bytes(records: Records) -> npt.NDArray[np.uint8]:
    """(N, bytes of one record), a view."""
    return records.view(np.uint8).reshape(len(records), records.dtype.itemsize)


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
    # Versions of one layout are read together.
    if set(versions) <= {WITHOUT_EDGES, WITH_EDGES}:
        return _decode(users, blobs, HEADER)
    parts, order = [], []
    for some in ({1}, {WITHOUT_EDGES, WITH_EDGES}, {VERSION}):
        rows = [u for u, version in enumerate(versions) if version in some]
        if rows:
            names, found = [users[u] for u in rows], [blobs[u] for u in rows]
            parts.append(_decode(names, found, _HEADERS[max(some)], whole=some == {VERSION}))
        order += rows
    if len(parts) == 1:
        return parts[0]
    return States.concat(parts).select(np.argsort(np.array(order, np.intp)))


def _decode(
    users: Sequence[str],
    blobs: Sequence[bytes],
    layout: np.dtype[np.void],
    whole: bool = False,
) -> States:
    n, h = len(blobs), layout.itemsize
    side, event = (_WIDE, _WHOLE) if whole else (_S, _E)
    sizes = np.fromiter(map(len, blobs), np.int64, n)
    _refuse(users, sizes < h + side, "cut short")
    front = np.frombuffer(b"".join([blob[: h + side] for blob in blobs]), np.uint8)
    front = front.reshape(n, h + side)
    header = front[:, :h].copy().view(layout)[:, 0]
    tails = header["tail"].astype(np.int64)
    ids = header["ids"].astype(np.int64)
    rings = header["ring"].astype(np.int64)
    stored = header["head"].astype(bool)
    edged = header["version"] == WITH_EDGES
    head_end = h + side + stored * side
    tail_end = head_end + tails * event
    ids_end = tail_end + ids * _N
    ring_end = ids_end + rings * _N
    wrong = sizes != ring_end + edged * (1 + stored) * _MORE
    wrong |= (stored != (tails > 0)) | (header["head"] > 1)
    _refuse(users, wrong, "of a wrong length")

    settled = blank(n)
    _bytes(settled)[:, :side] = front[:, h:]
    _put_edges(settled, np.flatnonzero(edged), blobs, ring_end)
    head = copied(settled)
    at = np.flatnonzero(stored)
    if len(at):
        cut = [blobs[u][h + side : h + side + side] for u in at.tolist()]
        _bytes(head)[at, :side] = np.frombuffer(b"".join(cut), np.uint8).reshape(len(at), side)
        _put_edges(head, np.flatnonzero(edged & stored), blobs, ring_end + _MORE)
    states = States(
        list(users),
        settled,
        head,
        _rows(blobs, head_end, tails, EVENT, event),
        _rows(blobs, tail_end, ids, SEEN, _N),
        _rows(blobs, ids_end, rings, SEEN, _N),
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
        found = np.frombuffer(b"".join(cut), np.uint8).reshape(len(at), _MORE)
        _bytes(sides)[at, _S : _S + _MORE] = found


def _checks(header: Records, states: States) -> Ints:
    """Checksum of each user's state, `check` in the header being 0."""
    each = np.arange(len(header) + 1)
    edged = header["version"] >= WITH_EDGES
    sums = _sums(header, each * header.dtype.itemsize)
    sums += _side_sums(states.settled, edged)
    sums += np.where(header["head"] > 0, _side_sums(states.head, edged), 0)
    # Words that are not stored are 0, and count for nothing.
    for rows, size in ((states.tail, _WHOLE), (states.ids, _N), (states.ring, _N)):
        sums += _sums(rows.values, rows.starts * size)
    return sums & 0xFFFFFFFF


def _rows(
    blobs: Sequence[bytes],
    begins: Ints,
    lengths: Ints,
    dtype: np.dtype[np.void],
    size: int,
) -> Rows:
    """Records of which the first `size` bytes are stored; the rest is 0."""
    ends = begins + lengths * size
    each = zip(blobs, begins.tolist(), ends.tolist(), strict=True)
    data = b"".join([blob[a:b] for blob, a, b in each]) if lengths.any() else b""
    if size == dtype.itemsize:
        return Rows(np.frombuffer(data, dtype), starts_of(lengths))
    records = np.zeros(len(data) // size, dtype)
    _bytes(records)[:, :size] = np.frombuffer(data, np.uint8).reshape(-1, size)
    return Rows(records, starts_of(lengths))


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
    more = sides.view("<u4").reshape(len(sides), _WIDE // 4)[:, _S // 4 : (_S + _MORE) // 4]
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
