"""Ports on loopback: free ones, kept over a restart.

Chosen below the range from which the system takes the ports of outgoing connections: a client
that keeps trying a port inside that range while the server is down can be given that very port
as its own, connect to itself, and keep the server out.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

from livevalue.embedded.errors import StackError

LOOPBACK = "127.0.0.1"


def is_free(port: int) -> bool:
    """Could a server bind it now? Connections in TIME_WAIT do not count, as for servers."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free(taken: set[int]) -> int:
    """A free port that is not among `taken`."""
    low = 20000
    high = min(_first_outgoing(), 61000)
    if high - low < 1000:
        low, high = 20000, 61000
    for _ in range(1000):
        port = random.randrange(low, high)
        if port not in taken and is_free(port):
            return port
    raise StackError(f"no free port between {low} and {high} on {LOOPBACK}")


def require(port: int, what: str) -> int:
    """The port that the caller named, or an error that says so."""
    if not is_free(port):
        raise StackError(
            f"port {port} on {LOOPBACK}, named for {what}, is in use: "
            "stop what listens there, or name another port"
        )
    return port


def _first_outgoing() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return 32768
