"""Runs the application: takes the address first, ends all streams when told to."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn

from livevalue.http.app import create_app
from livevalue.output import Refused
from streams.settings import Settings

_GRACE_S = 2  # for answers under way; streams are ended at once


def serve(settings: Settings, token: str, ready: Callable[[str], None]) -> None:
    """Serve at settings.serve until SIGTERM or Ctrl-C; `ready` is told the address."""
    with _taken(settings.serve.host, settings.serve.port) as taken:
        asyncio.run(_serve(settings, token, taken, ready))


async def _serve(
    settings: Settings, token: str, taken: socket.socket, ready: Callable[[str], None]
) -> None:
    app = create_app(settings, token=token)
    config = uvicorn.Config(
        app,
        log_config=None,  # lines of access are the proxy's; user ids are in them
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = _Server(config)

    def stop() -> None:
        # uvicorn waits for open connections, and a stream is one until it is ended.
        app.state.updates.end()
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    host, port = taken.getsockname()[:2]
    ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    await server.serve(sockets=[taken])


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to us: uvicorn would end by the signal instead of with exit code 0."""
        yield


def _taken(host: str, port: int) -> socket.socket:
    """A socket that listens there already: from `ready` on no client is refused."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=256)
    except (OSError, UnicodeError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise Refused(
            f"cannot serve at {host}:{port} ({why}): give another --port (0 takes any that is "
            "free), and as --host an address of this machine"
        ) from error
