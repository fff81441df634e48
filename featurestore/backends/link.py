"""Connections to Redis that send a batch in one write and read the reply with hiredis.

redis-py spends most of a commit's time on packing its 12,000 arguments, so the wire is spoken
here: RESP 2 over one asyncio transport (TCP, TLS or a unix socket). A link carries one exchange
at a time; `Links` takes a free one. After an error or a cancelled call a link is thrown away,
since a late reply would be taken for the next one's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import hiredis

from featurestore.backends.address import Address, Node
from featurestore.backends.nodes import nodes
from featurestore.backends.packing import command, pieces
from featurestore.backends.replies import SECTION, SETTING, failure
from featurestore.errors import StoreError, StoreUnavailable
from featurestore.secrets import refused
from featurestore.settings import StoreSettings

_BUFFER = 1 << 18  # bytes read at once: they are still in the cache when hiredis copies them
_KEPT = 16  # free connections a server; more are opened while many partitions are claimed at once
_ASKED_S = 1.0  # the next one is asked where one of several does not say who is master
_ELSEWHERE = ("MOVED", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "UNBLOCKED")
_HERE = ("127.0.0.1", "::1", "localhost")
_MISSING = object()

At = int | Node | None
"""Whom to ask: who holds a partition, this server, or whoever."""


class ErrorReply(Exception):
    """Redis answered with an error; the text is its own."""


class Link(asyncio.BufferedProtocol):
    """One connection. Replies come back in the order of the commands."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.open = False
        self.refused = ""  # what was said to a login that was not needed for certain
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
    """Lends connections to the server that holds a key, whichever that is at the moment.

    Where the URL names Sentinels or a cluster, a server that is gone or says that it is not the
    one is looked for again, once a call: what was refused so has done nothing. While a slot of a
    cluster moves key by key, one key is asked for where it is by then; what needs several keys, as
    a commit does, waits until all have moved (TRYAGAIN).
    """

    def __init__(self, address: Address, timeout_s: float) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self._nodes = nodes(address)
        self._free: dict[Node, list[Link]] = {}

    @classmethod
    def of(cls, settings: StoreSettings) -> Links:
        """As the settings say."""
        return cls(Address.of(settings), settings.timeout_s)

    @property
    def where(self) -> str:
        return self.address.shown

    async def all(self) -> list[Node]:
        """Every server that holds keys of ours, to be asked one by one."""
        return await self._nodes.all(self._ask_once)

    async def ask(self, at: At, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        """Replies to `commands`, in one round trip; error replies are raised.

        `at`: the partition that all of them are about, a server, or None: then the first one's
        key says where, if it is a GET or SET.
        Raises StoreUnavailable where no answer came: whether it was done is then unknown.
        """
        replies = await self.send(at, commands)
        for reply in replies:
            if isinstance(reply, ErrorReply):
                raise reply
        return replies

    async def send(self, at: At, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        """As `ask`, but with error replies among the replies."""
        again = self._nodes.roams and not isinstance(at, Node)
        while True:
            node = await self._holding(at, commands)
            try:
                link = await self._take(node)
            except StoreUnavailable:
                # Nothing was sent yet.
                self._lost(node)
                if not again:
                    raise
                again = False
                continue
            replies = await self._exchange(link, node, commands)
            if (there := _moving(replies, node)) and commands[0][0] != b"FCALL":
                # Not a function: the other node may have none of ours yet.
                return await self._ask_there(there, commands[0])
            if not any(isinstance(r, ErrorReply) and _elsewhere(str(r)) for r in replies):
                return replies
            self._lost(node)
            if not again:
                return replies
            again = False

    async def _ask_there(self, node: Node, command: Sequence[bytes]) -> list[Any]:
        """One command about a key that has gone before its slot."""
        link = await self._take(node)
        leave, reply = await self._exchange(link, node, [[b"ASKING"], command])
        return [leave if isinstance(leave, ErrorReply) else reply]

    async def _holding(self, at: At, commands: Sequence[Sequence[bytes]]) -> Node:
        if isinstance(at, Node):
            return at
        key = b"{%d}" % at if at is not None else None
        if key is None and commands[0][0] in (b"GET", b"SET"):
            key = commands[0][1]
        return await self._nodes.holding(key, self._ask_once)

    def _lost(self, node: Node) -> None:
        """Trust neither that this is the server nor that its other connections work."""
        self._nodes.forget()
        for link in self._free.pop(node, ()):
            link.close()

    async def _take(self, node: Node) -> Link:
        """A free connection, or a new one."""
        loop = asyncio.get_running_loop()
        free = self._free.get(node, [])
        while free:
            link = free.pop()
            # One of an earlier event loop cannot be used in this one.
            if link.open and link.loop is loop:
                return link
            link.close()
        return await self._connect(node, self.timeout_s)

    async def _exchange(
        self, link: Link, node: Node, commands: Sequence[Sequence[bytes]]
    ) -> list[Any]:
        whole = False
        try:
            async with asyncio.timeout(self.timeout_s):
                wire = chain.from_iterable(map(pieces, commands))
                replies = await link.ask(wire, len(commands))
            whole = True
            return replies
        except TimeoutError:
            self._lost(node)
            raise StoreUnavailable(
                f"Redis at {node} did not answer within {self.timeout_s:g} s: look at its "
                "load, or raise LIVEVALUE_STORE__TIMEOUT_S"
            ) from None
        except (OSError, hiredis.ProtocolError) as error:
            self._lost(node)
            raise StoreUnavailable(
                f"Redis at {node} broke the connection ({_reason(error)}): start it, or "
                f"correct {SETTING}"
            ) from error
        finally:
            free = self._free.setdefault(node, [])
            if whole and link.open and len(free) < _KEPT:
                free.append(link)
            else:
                link.close()

    async def _ask_once(self, node: Node, command: Sequence[bytes]) -> Any:
        """Ask where the others are, over a connection of its own."""
        patience_s = min(self.timeout_s, _ASKED_S)
        sentinel = self.address.kind == "sentinel"
        link = await self._connect(node, patience_s, sentinel=sentinel)
        try:
            async with asyncio.timeout(patience_s):
                (reply,) = await link.ask(pieces(command), 1)
        except (TimeoutError, OSError, hiredis.ProtocolError) as error:
            raise StoreUnavailable(
                f"Redis at {node} does not say where the others are ({_reason(error)}): start it, "
                f"or correct {SETTING}"
            ) from None
        finally:
            link.close()
        if isinstance(reply, ErrorReply):
            wanted = str(reply).startswith("NOAUTH")  # the login, after all
            raise failure(link.refused if wanted and link.refused else str(reply), str(node))
        return reply

    async def _connect(self, node: Node, patience_s: float, *, sentinel: bool = False) -> Link:
        try:
            async with asyncio.timeout(patience_s):
                return await self._greet(await self._reach(node), node, sentinel)
        except ssl.SSLError as error:
            said = refused(error, f"Redis at {node}", SECTION, SETTING)
            raise StoreError(
                said
                or f"Redis at {node} and we do not agree on TLS ({error.reason}): correct "
                f"{SETTING}, which says rediss://, or give Redis a TLS port"
            ) from error
        except TimeoutError:
            raise StoreUnavailable(
                f"Redis at {node} cannot be reached within {patience_s:g} s: start it, "
                f"or correct {SETTING} (rediss:// only where Redis speaks TLS)"
            ) from None
        except (OSError, hiredis.ProtocolError) as error:
            # A server that does not like our certificate may hang up before its alert is read.
            hint = f"; it may want a certificate: {SECTION}__CERT_FILE" if self.address.tls else ""
            start = " (`livevalue up` brings one)" if node.host in _HERE else ""
            raise StoreUnavailable(
                f"Redis at {node} cannot be reached ({_reason(error)}): start it{start}, or correct"
                f" {SETTING} (rediss:// where Redis speaks TLS, redis:// where it does not){hint}"
            ) from error

    async def _reach(self, node: Node) -> Link:
        loop = asyncio.get_running_loop()
        if node.path:
            _, link = await loop.create_unix_connection(lambda: Link(loop), node.path)
        else:
            _, link = await loop.create_connection(
                lambda: Link(loop), node.host, node.port, ssl=self.address.tls
            )
        return link

    async def _greet(self, link: Link, node: Node, sentinel: bool) -> Link:
        """Log in, choose the database, and see that a master is one."""
        user, secret = self.address.login()
        hello: list[list[bytes]] = []
        if user or secret:
            hello.append([b"AUTH", *([user.encode()] if user else []), secret.encode()])
        logins = len(hello)
        if self.address.database and not sentinel:
            hello.append([b"SELECT", b"%d" % self.address.database])
        checked = len(hello)
        hello.append([b"CLIENT", b"SETNAME", b"livevalue"])
        if self.address.kind == "sentinel" and not sentinel:
            hello.append([b"ROLE"])
        try:
            replies = await link.ask([b"".join(map(command, hello))], len(hello))
            # Sentinels often have no password where the servers have one; if one has, it refuses
            # the question. The name is a courtesy to operators, and may be forbidden.
            for number, reply in enumerate(replies[:checked]):
                if not isinstance(reply, ErrorReply):
                    continue
                if not (sentinel and number < logins):
                    raise failure(str(reply), str(node))
                link.refused = str(reply)
            if hello[-1] == [b"ROLE"]:
                if isinstance(replies[-1], ErrorReply):
                    raise failure(str(replies[-1]), str(node))
                if replies[-1][0] != b"master":
                    # Just demoted, or not yet promoted: a replica would answer with what was.
                    raise failure("READONLY", str(node))
        except BaseException:
            link.close()
            raise
        return link

    async def close(self) -> None:
        """Close the free connections; those lent close when they come back broken."""
        while self._free:
            for link in self._free.popitem()[1]:
                link.close()
        await asyncio.sleep(0)  # lets the loop close the sockets


def _elsewhere(text: str) -> bool:
    """Does the server say that another one is to be asked, now or soon?"""
    return any(word in text for word in _ELSEWHERE)


def _moving(replies: Sequence[Any], asked: Node) -> Node | None:
    """Where the only command's key is, if its slot is about to leave the node that was asked.

    >>> str(_moving([ErrorReply("ASK 3999 10.0.0.2:6381")], Node("10.0.0.1", 6379)))
    '10.0.0.2:6381'
    """
    if len(replies) != 1 or not isinstance(replies[0], ErrorReply):
        return None
    word, _, rest = str(replies[0]).partition(" ")
    if word != "ASK":
        return None
    host, _, port = rest.split()[-1].rpartition(":")
    # A node that does not know its own name leaves it to whom we asked.
    return Node(host.strip("[]") or asked.host, int(port))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
