"""Which server holds a partition.

The one of the URL, the master that Sentinel names, or the owner of its slot in a Redis Cluster.
What was found is remembered until `forget`: a broken connection, a time-out, or a server that
says that it is not the one. A failover may lose writes that were acknowledged, since replication
is asynchronous; to the commit protocol that is a roll-back, which it makes good.

Sources: "Guidelines for Redis clients with support for Redis Sentinel", "Redis cluster
specification" (redis.io); a key's slot is CRC16/XMODEM of what stands in its braces.
"""

from __future__ import annotations

import asyncio
from binascii import crc_hqx
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from featurestore.backends.address import Address, Node
from featurestore.backends.replies import SETTING
from featurestore.errors import FeatureStoreError, StoreError, StoreUnavailable

Ask = Callable[[Node, Sequence[bytes]], Awaitable[Any]]
"""One command to one server; the reply. Raises FeatureStoreError."""

_SLOTS = 16384


def slot(key: bytes) -> int:
    """The slot of a key in a cluster.

    >>> slot(b"123456789"), slot(b"lv:{7}:top") == slot(b"7")
    (12739, True)
    """
    _, brace, rest = key.partition(b"{")
    tag, end, _ = rest.partition(b"}")
    return crc_hqx(tag if brace and end and tag else key, 0) % _SLOTS


class Nodes:
    """The one server of a URL; other ways to find one are subclasses."""

    def __init__(self, address: Address) -> None:
        self.address = address

    async def holding(self, key: bytes | None, ask: Ask) -> Node:
        """The server that takes writes to `key` (None: to whatever)."""
        return self.address.nodes[0]

    async def all(self, ask: Ask) -> list[Node]:
        """Every server that holds keys of ours."""
        return [await self.holding(None, ask)]

    def forget(self) -> None:
        """Find out anew next time."""

    @property
    def roams(self) -> bool:
        """Whether another server may take the place of one that is gone."""
        return self.address.kind != "node"


class _Asking(Nodes):
    """Remembers an answer; many who ask at once wait for one."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._lock: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        self._at = list(address.nodes)  # to be asked, the last that answered first

    async def _ask_any(
        self, ask: Ask, command: Sequence[bytes], read: Callable[[Node, Any], bool]
    ) -> bool:
        """Ask one after the other until `read` takes an answer; False where none knew.

        Raises the last error where nobody answered.
        """
        failed: FeatureStoreError | None = None
        answered = False
        for node in list(self._at):
            try:
                reply = await ask(node, command)
            except FeatureStoreError as error:
                # A refused login is as good as no answer while another one lets us in.
                failed = error
                continue
            answered = True
            if read(node, reply):
                self._at.remove(node)
                self._at.insert(0, node)
                return True
        if not answered and failed is not None:
            raise failed
        return False

    def forget(self) -> None:
        # One that was cut off from the others goes on telling what was.
        self._at.append(self._at.pop(0))

    def _locked(self) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if self._lock is None or self._lock[0] is not loop:
            self._lock = (loop, asyncio.Lock())
        return self._lock[1]


class Sentinels(_Asking):
    """The master that the Sentinels agree on."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._master: Node | None = None

    async def holding(self, key: bytes | None, ask: Ask) -> Node:
        if self._master is None:
            async with self._locked():
                if self._master is None:
                    self._master = await self._find(ask)
        return self._master

    async def _find(self, ask: Ask) -> Node:
        found: list[Node] = []

        def read(_: Node, reply: Any) -> bool:
            if reply is not None:
                found.append(Node(reply[0].decode(), int(reply[1])))
            return reply is not None

        name = self.address.master.encode()
        if not await self._ask_any(ask, [b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name], read):
            raise StoreError(
                f"the Sentinels know no master {self.address.master!r}: correct the name after "
                f"the hosts in {SETTING}"
            )
        return found[0]

    def forget(self) -> None:
        if self._master is not None:
            self._master = None
            super().forget()


class Cluster(_Asking):
    """The owner of each slot, by CLUSTER SLOTS."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._ranges: list[tuple[int, int, Node]] = []

    async def holding(self, key: bytes | None, ask: Ask) -> Node:
        ranges = await self._known(ask)
        at = 0 if key is None else slot(key)
        for first, last, node in ranges:
            if key is None or first <= at <= last:
                return node
        self.forget()
        raise StoreUnavailable(
            f"no node of {self.address.shown} has slot {at}: bring the nodes of the cluster back"
        )

    async def all(self, ask: Ask) -> list[Node]:
        return list(dict.fromkeys(node for _, _, node in await self._known(ask)))

    async def _known(self, ask: Ask) -> list[tuple[int, int, Node]]:
        if not self._ranges:
            async with self._locked():
                if not self._ranges:
                    await self._find(ask)
        return self._ranges

    async def _find(self, ask: Ask) -> None:
        seen: list[tuple[int, int, Node]] = []
        everyone: dict[Node, None] = {}

        def read(asked: Node, reply: Any) -> bool:
            # [first slot, last slot, [host, port, …] of the master, of each replica …]
            for first, last, *nodes in reply:
                # A node that does not know its own name leaves it to whom we asked.
                all_of = [
                    Node((n[0] or b"").decode() or asked.host, int(n[1]))
                    for n in nodes
                    if n[0] != b"?"
                ]
                everyone.update(dict.fromkeys(all_of))
                if all_of:
                    seen.append((first, last, all_of[0]))
            return bool(seen)

        if not await self._ask_any(ask, [b"CLUSTER", b"SLOTS"], read):
            raise StoreUnavailable(
                f"{self.address.shown} has no slots yet: make the cluster, or wait for it"
            )
        self._ranges = seen
        # Later ask whoever the cluster consists of by then, those of the URL last.
        self._at = list(dict.fromkeys([self._at[0], *everyone, *self.address.nodes]))

    def forget(self) -> None:
        if self._ranges:
            self._ranges = []
            super().forget()


def nodes(address: Address) -> Nodes:
    """By the kind of the URL."""
    return {"node": Nodes, "sentinel": Sentinels, "cluster": Cluster}[address.kind](address)
