"""`init`: a new project folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from livevalue.output import Json, Output

ORDER = 7


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Start")(init)


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="NAME", help="The folder, named as the project: shop.")
    ],
    currency: Annotated[
        str, typer.Option(metavar="CODE", help="What values are counted in, ISO 4217.")
    ] = "GBP",
    json: Json = None,
) -> None:
    """A new project: settings with comments, a deployment, sample events.

    NAME is made in the working directory and must be empty if it exists. Nothing in it names a
    path outside it; livevalue.toml is what you edit next.

    Example:  livevalue init shop --currency EUR
    """
    from livevalue.jobs.starting import start

    out = Output(json)
    facts = start(folder, currency, time.time_ns() // 1_000_000)
    out.say(f"made {folder}: {', '.join(facts['files'])}")
    out.say(f"Next:  cd {folder} && livevalue up      (then as README.md says)")
    out.result(facts)
