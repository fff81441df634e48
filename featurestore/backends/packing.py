"""How watermarks, outbox entries, `lv:meta` and whole commands look in Redis.

A watermark is a hash that people can read: positions and clocks comma-separated, identities as
"seq:writer". An outbox entry is "seq:writer", a NUL, then msgpack [users, letters]: store.lua
finds an entry by its head and reads the users. A command is an array of bulk strings (RESP,
https://valkey.io/topics/protocol/).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import msgspec

from featurestore.backends.checks import half_done
from featurestore.errors import StoreError
from featurestore.store import Identity, Letter, Meta, OutboxEntry, Watermark

_HEADS = [b"\r\n$%d\r\n" % n for n in range(1 << 14)]  # before an argument of n bytes
_PIECE = 1 << 18  # bytes joined and sent at once: they are still in the cache when they are sent


def command(args: Sequence[bytes]) -> bytes:
    r"""One command on the wire.

    >>> command([b"GET", b"a key"])
    b'*2\r\n$3\r\nGET\r\n$5\r\na key\r\n'
    """
    return b"".join(pieces(args))


def pieces(args: Sequence[bytes]) -> Iterator[bytes]:
    """One command on the wire, piece by piece.

    Joined here, not by hiredis.pack_command: with 16,000 arguments of 18 MB that took 7-11 µs a
    user against 1.5 (hiredis 3.5.0). In pieces, since fresh memory for the whole costs as much
    again.
    """
    sizes = list(map(len, args))
    parts = [b""] * (2 * len(args))
    try:
        parts[::2] = [_HEADS[n] for n in sizes]
    except IndexError:
        parts[::2] = [b"\r\n$%d\r\n" % n for n in sizes]
    parts[1::2] = args
    parts[0] = b"*%d" % len(args) + parts[0]
    parts.append(b"\r\n")
    total = sum(sizes)
    count = max(1, total // _PIECE)
    step = -(-len(parts) // count)
    for start in range(0, len(parts), step):
        yield b"".join(parts[start : start + step])


def identity(of: Identity | None) -> bytes:
    """As it stands in a watermark and before an outbox entry; b"" where there is none."""
    return b"" if of is None else b"%d:%s" % (of.seq, of.writer.encode())


def identity_of(text: bytes) -> Identity | None:
    """Inverse of `identity`."""
    if not text:
        return None
    seq, _, writer = text.partition(b":")
    return Identity(int(seq), writer.decode())


def numbers(of: Sequence[int]) -> bytes:
    """Positions or clocks, comma-separated."""
    return ",".join(map(str, of)).encode()


def _numbers_of(text: bytes) -> tuple[int, ...]:
    return tuple(map(int, text.split(b","))) if text else ()


def fields(mark: Watermark) -> list[bytes]:
    """A watermark's hash: names and values in turn."""
    return [
        *(b"positions", numbers(mark.positions)),
        *(b"clocks", numbers(mark.clocks)),
        *(b"seq", b"%d" % mark.identity.seq),
        *(b"writer", mark.identity.writer.encode()),
        *(b"log", mark.log_id.encode()),
        *(b"marks", msgspec.json.encode(mark.marks)),
        *(b"fingerprint", mark.fingerprint.encode()),
        *(b"generation", mark.generation.encode()),
        *(b"base", mark.base.encode()),
        *(b"published", identity(mark.published)),
        *(b"progress", mark.progress.encode()),
        *(b"idle", b"".join(b"1" if idle else b"0" for idle in mark.idle)),
        *(b"trails", msgspec.json.encode(mark.trails)),
    ]


def watermark_of(flat: Sequence[bytes]) -> tuple[str, Watermark | None]:
    """Token and watermark from the names and values of a hash; None before a first commit."""
    held = dict(zip(flat[::2], flat[1::2], strict=True))
    if b"dropping" in held:
        raise half_done(held[b"dropping"].decode())
    token = held.get(b"token", b"").decode()
    if b"positions" not in held:
        return token, None
    try:
        return token, Watermark(
            positions=_numbers_of(held[b"positions"]),
            clocks=_numbers_of(held[b"clocks"]),
            identity=Identity(int(held[b"seq"]), held[b"writer"].decode()),
            log_id=held[b"log"].decode(),
            marks=msgspec.json.decode(held[b"marks"], type=tuple[str, ...]),
            fingerprint=held[b"fingerprint"].decode(),
            generation=held[b"generation"].decode(),
            base=held[b"base"].decode(),
            published=identity_of(held[b"published"]),
            progress=held[b"progress"].decode(),
            idle=tuple(idle == 49 for idle in held[b"idle"]),
            # Not in a store that an earlier version left.
            trails=msgspec.json.decode(held.get(b"trails", b"[]"), type=tuple[str, ...]),
        )
    except (KeyError, ValueError) as error:
        raise StoreError(
            f"a watermark cannot be read ({type(error).__name__}: {error}): restore Redis from a "
            "backup, or drop the store and build it again"
        ) from error


def entry(of: Identity, users: Sequence[str], letters: Sequence[Letter]) -> bytes:
    """One outbox entry."""
    rows = [(letter.source, letter.offset, letter.reason) for letter in letters]
    return identity(of) + b"\0" + msgspec.msgpack.encode((users, rows))


def entry_of(packed: bytes) -> OutboxEntry:
    """Inverse of `entry`.

    >>> entry_of(entry(Identity(3, "ab"), ["ada"], [Letter(0, 7, "late")])).letters
    (Letter(source=0, offset=7, reason='late'),)
    """
    head, _, body = packed.partition(b"\0")
    try:
        of = identity_of(head)
        users, rows = msgspec.msgpack.decode(
            body, type=tuple[tuple[str, ...], tuple[tuple[int, int, str], ...]]
        )
    except ValueError as error:
        raise StoreError(
            f"an outbox entry cannot be read ({error}): restore Redis from a backup"
        ) from error
    if of is None:
        raise StoreError("an outbox entry names no commit: restore Redis from a backup")
    return OutboxEntry(of, users, tuple(Letter(*row) for row in rows))


def meta(of: Meta) -> bytes:
    """`lv:meta`: a JSON document."""
    return msgspec.json.encode(asdict(of))


def meta_of(text: bytes) -> Meta:
    """Inverse of `meta`; fields of a later release are left out."""
    try:
        return msgspec.json.decode(text, type=Meta)
    except ValueError as error:
        raise StoreError(f"the key `meta` is not of this release: {error}") from error
