"""`serve`: HTTP and the console."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from livevalue.output import Json, Output

ORDER = 14


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Start")(serve)


def serve(
    host: Annotated[
        str | None, typer.Option(metavar="HOST", help="Address; LIVEVALUE_SERVE__HOST.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=0, max=65535, help="0 is free; LIVEVALUE_SERVE__PORT."),
    ] = None,
    json: Json = None,
) -> None:
    """Values over HTTP, updates as server-sent events, and a console in the browser.

    A process of its own that reads what workers write, until SIGTERM or Ctrl-C. It binds
    127.0.0.1:8080 unless told otherwise; the interface is described at /docs. Set
    LIVEVALUE_SERVE__TOKEN, or __TOKEN_FILE, before others can reach it.

    Example:  livevalue serve --port 8080
    """
    from livevalue import running
    from livevalue.http.security import is_loopback, token_of
    from livevalue.http.server import serve as work

    out = Output(json)
    found = running.settings()
    given = {"host": host, "port": port}
    changed = {name: value for name, value in given.items() if value is not None}
    settings = found.model_copy(update={"serve": found.serve.model_copy(update=changed)})
    token = token_of(settings.serve)
    if not token and not is_loopback(settings.serve.host):
        print(
            f"livevalue: warning: {settings.serve.host} is reached from other machines and "
            "there is no authentication: everybody there can read every value. Set "
            "LIVEVALUE_SERVE__TOKEN.",
            file=sys.stderr,
            flush=True,
        )

    def ready(url: str) -> None:
        out.say(f"Console {url}/   interface {url}/docs   Stop: Ctrl-C")
        out.result({"url": url, "pid": os.getpid()})

    work(settings, token, ready)
    out.say("Stopped.")
