"""Connections to Redis that send a batch in one write and read the reply with hiredis.

redis-py spends most of a commit's time on packing its 12,000 arguments, so the wire is spoken
here: RESP 2 over one asyncio transport (TCP, TLS or a unix socket). A link carries one exchange
at a time; `Links` lends free ones. After an error or a cancelled call a link is thrown away,
since a late reply would be taken for the next one's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

from featurestore.backends.packing import command, pieces
from featurestore.backends.replies import SETTING, failure
from featurestore.errors import StoreError, StoreUnavailable

_BUFFER = 1 << 18  # bytes read at once: they are still in the cache when hiredis copies them
_KEPT = 16  # free connections; more are opened while many partitions are claimed at once
_MISSING = object()


class ErrorReply(Exception):
    """Redis answered with an error; the text is its own."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where Redis is, read from LIVEVALUE_STORE__URL.

    >>> Address.parse("redis://:secret@cache:6380/2").shown
    'cache:6380/2'
    >>> Address.parse("unix:///run/redis.sock?db=1").shown
    '/run/redis.sock/1'
    """

    host: str
    port: int
    path: str  # of a unix socket, "" = TCP
    database: int
    username: str
    password: str
    tls: ssl.SSLContext | None

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises StoreError, without the URL in its message: it may hold a password."""
        try:
            parts = urlsplit(url)
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            port = parts.port or 6379
            if parts.scheme not in ("redis", "rediss", "unix"):
                raise ValueError("unknown scheme")
            local = parts.scheme == "unix"
            text = query.pop("db", "" if local else parts.path.strip("/"))
            if local and not parts.path:
                raise ValueError("no path")
            database = int(text or 0)
        except ValueError:
            raise StoreError(
                f"{SETTING} is not a URL of Redis: write redis://[[user]:password@]host[:port]"
                "[/db], the same with rediss:// for TLS, or unix:///path[?db=0]"
            ) from None
        tls = _tls(query) if parts.scheme == "rediss" else None
        if query:
            raise StoreError(
                f"{SETTING} has an option that is not known: {sorted(query)[0]}; known are db, "
                "and with rediss:// ssl_ca_certs, ssl_certfile, ssl_keyfile, ssl_cert_reqs and "
                "ssl_check_hostname"
            )
        return cls(
            host=parts.hostname or "127.0.0.1",
            port=port,
            path=unquote(parts.path) if local else "",
            database=database,
            username=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            tls=tls,
        )

    @property
    def shown(self) -> str:
        """For messages: no name, no password."""
        return f"{self.path or f'{self.host}:{self.port}'}" + (
            f"/{self.database}" if self.database else ""
        )


def _tls(query: dict[str, str]) -> ssl.SSLContext:
    authority = query.pop("ssl_ca_certs", "")
    certificate, key = query.pop("ssl_certfile", ""), query.pop("ssl_keyfile", "")
    wants = query.pop("ssl_cert_reqs", "required")
    checks = query.pop("ssl_check_hostname", "true").lower() not in ("false", "0", "no")
    for path in (authority, certificate, key):
        if path and not Path(path).is_file():
            raise StoreError(f"{SETTING} names a file that does not exist: {path}")
    try:
        context = ssl.create_default_context(cafile=authority or None)
        if certificate:
            context.load_cert_chain(certificate, key or None)
    except ssl.SSLError as error:
        raise StoreError(
            f"{SETTING} names a certificate that cannot be read: {error.reason}"
        ) from error
    context.check_hostname = checks and wants == "required"
    if wants == "none":
        context.verify_mode = ssl.CERT_NONE
    return context


class Link(asyncio.BufferedProtocol):
    """One connection. Replies come back in the order of the commands."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.open = False
        self._transport: asyncio.Transport | None = None
        # As a view: asyncio's TLS slices it, and a slice of a bytearray would be a copy.
        self._buffer = memoryview(bytearray(_BUFFER))
        self._reader = hiredis.Reader(notEnoughData=_MISSING, replyError=ErrorReply)
        self._replies: list[Any] = []
        self._count = 0
        self._done: asyncio.Future[list[Any]] | None = None
        self._room: asyncio.Future[None] | None = None  # set while the transport is full

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._fail(exc or ConnectionResetError("the server closed the connection"))

    def pause_writing(self) -> None:
        self._room = self.loop.create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            # hiredis's stub knows bytes only; its code takes any buffer.
            self._reader.feed(self._buffer, 0, nbytes)  # type: ignore[arg-type]
            while (reply := self._reader.gets()) is not _MISSING:
                self._replies.append(reply)
        except hiredis.ProtocolError as error:
            self.close()
            self._fail(error)
            return
        if self._done is not None and len(self._replies) >= self._count:
            done, self._done = self._done, None
            if not done.done():
                done.set_result(self._replies)

    def _fail(self, error: Exception) -> None:
        self.resume_writing()
        done, self._done = self._done, None
        if done is not None and not done.done():
            done.set_exception(error)

    async def ask(self, wire: Iterable[bytes], replies: int) -> list[Any]:
        """Send commands, in pieces, and wait for the replies; error replies are among them."""
        if self._transport is None or not self.open:
            raise ConnectionResetError("the connection is closed")
        self._replies, self._count = [], replies
        self._done = self.loop.create_future()
        done = self._done
        for piece in wire:
            self._transport.write(piece)
            if self._room is not None and not done.done():
                await self._room
        return await done

    def close(self) -> None:
        self.open = False
        if self._transport is not None and not self.loop.is_closed():
            self._transport.abort()


class Links:
    """Lends connections. Asks for a partition, so that a cluster can be had behind this name."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.address = Address.parse(url)
        self.timeout_s = timeout_s
        self._free: list[Link] = []

    @property
    def where(self) -> str:
        return self.address.shown

    @asynccontextmanager
    async def lend(self, partition: int | None) -> AsyncIterator[Link]:
        """A connection to the node that holds `partition` (None: any node)."""
        loop = asyncio.get_running_loop()
        link: Link | None = None
        while self._free and link is None:
            link = self._free.pop()
            # One of an earlier event loop cannot be used in this one.
            if not link.open or link.loop is not loop:
                link.close()
                link = None
        if link is None:
            link = await self._connect(loop)
        whole = False
        try:
            yield link
            whole = True
        finally:
            if whole and link.open and len(self._free) < _KEPT:
                self._free.append(link)
            else:
                link.close()

    async def ask(self, partition: int | None, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        """Replies to `commands`, in one round trip; error replies are raised.

        Raises StoreUnavailable where no answer came: whether it was done is then unknown.
        """
        wire = chain.from_iterable(map(pieces, commands))
        replies = await self.send(partition, wire, len(commands))
        for reply in replies:
            if isinstance(reply, ErrorReply):
                raise reply
        return replies

    async def send(self, partition: int | None, wire: Iterable[bytes], replies: int) -> list[Any]:
        """As `ask`, from packed commands, and with error replies among the replies."""
        try:
            async with self.lend(partition) as link, asyncio.timeout(self.timeout_s):
                return await link.ask(wire, replies)
        except TimeoutError:
            raise StoreUnavailable(
                f"Redis at {self.where} did not answer within {self.timeout_s:g} s: look at its "
                "load, or raise LIVEVALUE_STORE__TIMEOUT_S"
            ) from None
        except (OSError, hiredis.ProtocolError) as error:
            raise StoreUnavailable(
                f"Redis at {self.where} broke the connection ({_reason(error)}): start it, or "
                f"correct {SETTING}"
            ) from error

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> Link:
        try:
            async with asyncio.timeout(self.timeout_s):
                return await self._greet(await self._reach(loop))
        except ssl.SSLError as error:
            raise StoreError(
                f"Redis at {self.where} and we do not agree on TLS ({error.reason}): correct the "
                f"ssl_ options of {SETTING}, or use redis:// where Redis has no TLS"
            ) from error
        except TimeoutError:
            raise StoreUnavailable(
                f"Redis at {self.where} cannot be reached within {self.timeout_s:g} s: start it, "
                f"or correct {SETTING} (rediss:// only where Redis speaks TLS)"
            ) from None
        except (OSError, hiredis.ProtocolError) as error:
            raise StoreUnavailable(
                f"Redis at {self.where} cannot be reached ({_reason(error)}): start it, or "
                f"correct {SETTING}"
            ) from error

    async def _reach(self, loop: asyncio.AbstractEventLoop) -> Link:
        at = self.address
        if at.path:
            _, link = await loop.create_unix_connection(lambda: Link(loop), at.path)
        else:
            _, link = await loop.create_connection(lambda: Link(loop), at.host, at.port, ssl=at.tls)
        return link

    async def _greet(self, link: Link) -> Link:
        """Log in and choose the database."""
        at = self.address
        hello: list[list[bytes]] = []
        if at.password or at.username:
            names = [at.username.encode()] if at.username else []
            hello.append([b"AUTH", *names, at.password.encode()])
        if at.database:
            hello.append([b"SELECT", b"%d" % at.database])
        hello.append([b"CLIENT", b"SETNAME", b"livevalue"])
        try:
            replies = await link.ask([b"".join(map(command, hello))], len(hello))
            # The name is a courtesy to operators; an account may lack the right to set it.
            for reply in replies[:-1]:
                if isinstance(reply, ErrorReply):
                    raise failure(str(reply), self.where)
        except BaseException:
            link.close()
            raise
        return link

    async def close(self) -> None:
        """Close the free connections; those lent close when they come back broken."""
        while self._free:
            self._free.pop().close()
        await asyncio.sleep(0)  # lets the loop close the sockets


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
