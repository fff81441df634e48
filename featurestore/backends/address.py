"""Where Redis is and how one logs in, read from LIVEVALUE_STORE__URL and the files beside it.

    redis://[[user]:password@]host[:port][/db]               one node; rediss:// with TLS
    unix:///path[?db=0]                                      one node, over a socket
    redis+sentinel://host[:port][,host[:port]]/master[/db]   the master that Sentinel names
    redis+cluster://host[:port][,host[:port]]                a Redis Cluster, found by any of these

`rediss+sentinel://` and `rediss+cluster://` speak TLS with everyone, the Sentinels too. User and
password stand before the first host, as in a URL of one node.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import SecretStr

from featurestore.backends.replies import SECTION, SETTING
from featurestore.errors import StoreError
from featurestore.secrets import SecretError, password, tls
from featurestore.settings import StoreSettings

Kind = Literal["node", "sentinel", "cluster"]

_PORT, _SENTINEL_PORT = 6379, 26379
_FORMS = (
    f"{SETTING} is not a URL of Redis: write redis://[[user]:password@]host[:port][/db], the same "
    "with rediss:// for TLS, unix:///path[?db=0], redis+sentinel://host:port[,host:port]/master, "
    "or redis+cluster://host:port[,host:port]"
)


@dataclass(frozen=True, slots=True)
class Node:
    """One server: a host and a port, or the path of a unix socket.

    >>> str(Node("::1", 6379)), str(Node(path="/run/redis.sock"))
    ('[::1]:6379', '/run/redis.sock')
    """

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Address:
    """What LIVEVALUE_STORE__URL says.

    >>> Address.parse("redis://:secret@cache:6380/2").shown
    'cache:6380/2'
    >>> Address.parse("unix:///run/redis.sock?db=1").shown
    '/run/redis.sock/1'
    >>> Address.parse("redis+sentinel://app:secret@a,b:26380/shop").shown
    'shop of Sentinel a:26379,b:26380'
    """

    nodes: tuple[Node, ...]
    kind: Kind = "node"
    master: str = ""  # name by which Sentinel knows it
    database: int = 0
    username: str = ""
    password: SecretStr = field(default=SecretStr(""), repr=False)
    password_file: str = ""
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, settings: StoreSettings) -> Address:
        """Raises StoreError, without the URL in its message: it may hold a password."""
        return cls.parse(
            settings.url.get_secret_value(),
            settings.password_file,
            (settings.ca_file, settings.cert_file, settings.key_file),
        )

    @classmethod
    def parse(
        cls, url: str, password_file: str = "", files: tuple[str, str, str] = ("", "", "")
    ) -> Address:
        """`files`: authority, our certificate, its key; options of the URL win."""
        try:
            scheme, _, rest = url.partition("://")
            base, _, way = scheme.partition("+")
            if base not in ("redis", "rediss", "unix") or way not in ("", "sentinel", "cluster"):
                raise ValueError("unknown scheme")
            # By hand: a list of hosts is no host to urlsplit, and a password may hold anything.
            login, _, place = rest.rpartition("@")
            user, _, secret = login.partition(":")
            place, _, options = place.partition("?")
            hosts, _, path = place.partition("/")
            query = {name: values[-1] for name, values in parse_qs(options).items()}
            master = ""
            if base == "unix":
                if way or hosts or not path:
                    raise ValueError("no path")
                nodes: tuple[Node, ...] = (Node(path=f"/{unquote(path)}"),)
                path = ""
            else:
                port = _SENTINEL_PORT if way == "sentinel" else _PORT
                nodes = tuple(_node(text, port) for text in hosts.split(","))
                if len(nodes) > 1 and not way:
                    raise ValueError("several hosts")
            if way == "sentinel":
                master, _, path = path.partition("/")
                if not master:
                    raise ValueError("no master")
            database = int(query.pop("db", path.strip("/")) or 0)
            if way == "cluster" and database:
                raise ValueError("a cluster has one database")
        except ValueError:
            raise StoreError(_FORMS) from None
        context = _tls(query, files) if base == "rediss" else None
        if query:
            raise StoreError(
                f"{SETTING} has an option that is not known: {sorted(query)[0]}; known are db, "
                "and with rediss:// ssl_ca_certs, ssl_certfile and ssl_keyfile"
            )
        return cls(
            nodes,
            "sentinel" if way == "sentinel" else "cluster" if way else "node",
            unquote(master),
            database,
            unquote(user),
            SecretStr(unquote(secret)),
            password_file,
            context,
        )

    def login(self) -> tuple[str, str]:
        """User name and password as they are now: the file is read again."""
        try:
            said = password(self.password, self.password_file, f"{SECTION}__PASSWORD_FILE")
        except SecretError as error:
            raise StoreError(str(error)) from None
        return self.username, said

    @property
    def shown(self) -> str:
        """For messages: no name, no password."""
        nodes = ",".join(map(str, self.nodes))
        if self.kind == "sentinel":
            nodes = f"{self.master} of Sentinel {nodes}"
        elif self.kind == "cluster":
            nodes = f"cluster {nodes}"
        return nodes + (f"/{self.database}" if self.database else "")


def _node(text: str, port: int) -> Node:
    """host, host:port or [address]:port."""
    parts = urlsplit(f"//{text}")
    if parts.username is not None or parts.path or parts.query:
        raise ValueError("more than a host and a port")
    return Node(parts.hostname or "127.0.0.1", parts.port or port)


def _tls(query: dict[str, str], files: tuple[str, str, str]) -> ssl.SSLContext:
    named = [query.pop(f"ssl_{name}", "") for name in ("ca_certs", "certfile", "keyfile")]
    for path in named:
        if path and not Path(path).is_file():
            raise StoreError(f"{SETTING} names a file that does not exist: {path}")
    authority, certificate, key = (said or ours for said, ours in zip(named, files, strict=True))
    try:
        return tls(SECTION, authority, certificate, key)
    except SecretError as error:
        also = f", or in {SETTING}" if any(named) else ""
        raise StoreError(f"{error}{also}") from None
