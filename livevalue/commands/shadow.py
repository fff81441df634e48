"""`shadow`: another generation beside the champion, compared before it serves anybody."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from featurestore.wording import counted
from livevalue.output import Json, Output
from livevalue.srcs import Columns, OrderLines, Type, options

ORDER = 53


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Models")(shadow)


def shadow(
    name: Annotated[str, typer.Argument(metavar="G")],
    every: Annotated[str, typer.Option(metavar="10m", help="Again and again until stopped.")] = "",
    archive: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where `livevalue archive` writes.")
    ] = Path("archive"),
    base: Annotated[
        list[str] | None,
        typer.Option(
            "--base", metavar="FILE", help="The files that the store was built from first."
        ),
    ] = None,
    columns: Columns = "",
    type_: Type = None,
    order_lines: OrderLines = False,
    json: Json = None,
) -> None:
    """Keep generation G beside what serves: fed from the same log, published to nobody.

    Its store is built aside and brought up to where the one that serves stands. Once a day what
    both say of every user is kept in the archive, and `livevalue audit` compares them as labels
    mature. `livevalue promote G` lets it serve; `livevalue stores drop` ends it.

    Example:  livevalue shadow 3f9c0a1b22cd --every 10m
    """
    from livevalue import running
    from livevalue.bars import bar
    from livevalue.jobs.shadowing import shadow as job
    from livevalue.repeating import repeatedly

    out = Output(json)
    files = options(columns, type_, order_lines, "skip")

    def once() -> None:
        with bar(out, "events") as tell:
            facts = asyncio.run(
                job(running.settings(), name, archive, base or (), files, out.say, tell)
            )
        what = counted(facts["users"], "user") if facts["taken"] else "there already"
        out.say(f"store {facts['store']} is fed; pair of {facts['snapshot']}, {what}")
        out.result(facts)

    repeatedly(once, every)
