"""`backfill`, `stores`: a log into a store built aside, and which store serves."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from featurestore.wording import counted
from livevalue.moments import moment
from livevalue.output import Json, Output
from livevalue.srcs import Anonymous, Columns, OrderLines, Type, options

ORDER = 45
_PANEL = "Stores"
_Src = Annotated[
    list[str],
    typer.Argument(
        metavar="SRC",
        help="kafka or files; for an archive's folder use `livevalue recover rebuild`.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command(rich_help_panel=_PANEL)(backfill)
    group = typer.Typer(
        help="Which stores there are, and which serves.\n\nExample:  livevalue stores ls",
        no_args_is_help=True,
    )
    group.command("ls")(ls)
    group.command("flip")(flip)
    group.command("drop")(drop)
    app.add_typer(group, name="stores", rich_help_panel=_PANEL)


def backfill(
    src: _Src,
    store: Annotated[
        str, typer.Option(metavar="S", help="Into this store; without, that of a first start.")
    ] = "",
    until: Annotated[
        str, typer.Option(metavar="T", help="Files count up to T, the topics from T on.")
    ] = "",
    generation: Annotated[
        str, typer.Option(metavar="G", help="Score with this one; without, the champion.")
    ] = "",
    jobs: Annotated[
        int, typer.Option(min=0, help="Processes for the topics; 0: up to one a core, by the log.")
    ] = 0,
    columns: Columns = "",
    type_: Type = None,
    order_lines: OrderLines = False,
    anonymous: Anonymous = "skip",
    json: Json = None,
) -> None:
    """Fold a log into an empty or aside store; run it again to go on where it stopped.

    Nothing is published on the way: the worker that takes the store over publishes each user once.
    A worker that starts first takes over that of a first start; `livevalue stores flip S` lets
    another one serve.

    Example:  livevalue backfill history.parquet kafka --until 2011-09-10

    Example:  livevalue backfill kafka --store aside
    """
    from livevalue import running
    from livevalue.bars import bar
    from livevalue.jobs.storing import backfill as job
    from livevalue.rejections import lines, totals

    out = Output(json)
    files = options(columns, type_, order_lines, anonymous)
    with bar(out, "events") as tell:
        facts = asyncio.run(
            job(
                running.settings(),
                src,
                store,
                moment(until) if until else None,
                files,
                generation=generation,
                jobs=jobs,
                progress=tell,
            )
        )
    out.table(*totals(facts))
    for line in lines(facts):
        out.say(line)
    out.result(facts)


def ls(json: Json = None) -> None:
    """All stores, their generation, and which one serves.

    Example:  livevalue stores ls
    """
    from livevalue import running
    from livevalue.jobs.storing import list_stores

    out = Output(json)
    facts = asyncio.run(list_stores(running.settings()))
    out.table(
        ("store", "serves", "generation", "partitions", "positions"),
        (
            (
                s["name"],
                "yes" if s["active"] else "",
                s["generation"][:12],
                len(s["positions"]),
                sum(sum(p) for p in s["positions"].values()),
            )
            for s in facts["stores"]
        ),
    )
    out.result(facts)


def flip(name: Annotated[str, typer.Argument(metavar="S")], json: Json = None) -> None:
    """Let store S serve, at equal positions; back is the same command with the other name.

    The workers do it, partition by partition, and then publish every user once.

    Example:  livevalue stores flip main
    """
    from livevalue import running
    from livevalue.jobs.storing import flip as job

    out = Output(json)
    facts = asyncio.run(job(running.settings(), name, out.say))
    out.result(facts)


def drop(name: Annotated[str, typer.Argument(metavar="S")], json: Json = None) -> None:
    """Delete store S and its states; refused for the one that serves.

    Example:  livevalue stores drop g-3f9c0a1b22cd
    """
    from livevalue import running
    from livevalue.jobs.storing import drop as job

    out = Output(json)
    facts = asyncio.run(job(running.settings(), name))
    out.say(f"{counted(facts['keys'], 'key')} of store {name} deleted")
    out.result(facts)
