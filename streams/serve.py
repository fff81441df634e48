"""/metrics, /livez and /readyz of a worker, on loopback, in a thread of its own.

livez: the event loop answered within the last seconds. readyz: every owned partition is claimed
and has caught up once with what was in the log at its claim; a halted partition is not ready.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from streams.errors import AddressError

Check = Callable[[], tuple[bool, str]]


class Server:
    """Serves until stopped. Port 0 takes a free one; `port` says which."""

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, live: Check, ready: Check
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.split("?", 1)[0]
                if path == "/metrics":
                    self._say(200, generate_latest(registry), CONTENT_TYPE_LATEST)
                elif path in ("/livez", "/readyz"):
                    well, why = (live if path == "/livez" else ready)()
                    self._say(200 if well else 503, f"{why}\n".encode(), "text/plain")
                else:
                    self._say(404, b"/metrics, /livez, /readyz\n", "text/plain")

            def _say(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Probes come every few seconds; they are no news."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise AddressError(
                f"metrics cannot be served at {host}:{port} ({error.strerror}): set "
                "LIVEVALUE_WORKER__METRICS_PORT to a free port (0 takes any), and "
                "LIVEVALUE_WORKER__METRICS_HOST to an address of this machine"
            ) from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
