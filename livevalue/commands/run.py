"""`run`: a worker."""

from __future__ import annotations

import os

import typer

ORDER = 12


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Start")(run)


def run() -> None:
    """A worker: events in, values out, until SIGTERM or Ctrl-C.

    Start as many as you like with the same settings: they share the partitions, and one that is
    killed is taken over. /metrics, /livez and /readyz are served on the port that it logs.

    Example:  livevalue run
    """
    # One batch after the other is computed; more threads would only wait for each other.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")

    from livevalue import running
    from streams.app import run as work

    work(running.settings())
