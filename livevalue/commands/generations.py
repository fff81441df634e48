"""`retrain`, `generations`, `promote`, `rollback`: the next model, and which one serves."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from featurestore.wording import counted
from livevalue.output import Json, Output, costs, measured
from livevalue.srcs import Anonymous, Columns, OrderLines, Src, Type, options

ORDER = 50
_PANEL = "Models"
_Base = Annotated[
    list[str] | None,
    typer.Option("--base", metavar="FILE", help="The files that the store was built from first."),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command(rich_help_panel=_PANEL)(retrain)
    group = typer.Typer(
        help="The generations of the registry.\n\nExample:  livevalue generations ls",
        no_args_is_help=True,
    )
    group.command("ls")(ls)
    group.command("show")(show)
    app.add_typer(group, name="generations", rich_help_panel=_PANEL)
    app.command(rich_help_panel=_PANEL)(promote)
    app.command(rich_help_panel=_PANEL)(rollback)


def retrain(
    src: Src,
    every: Annotated[str, typer.Option(metavar="24h", help="Again and again until stopped.")] = "",
    publish_only: Annotated[
        bool, typer.Option("--publish-only", help="Publish it; do not let it serve.")
    ] = False,
    base: _Base = None,
    family: Annotated[
        str,
        typer.Option(metavar="NAME", help="Train this one of `evaluate --models list`."),
    ] = "",
    if_drifted: Annotated[
        bool, typer.Option("--if-drifted", help="Only where the live users have drifted.")
    ] = False,
    psi: Annotated[
        float | None,
        typer.Option(
            min=0,
            show_default="setting retrain.psi",
            help="Population stability index beyond which they have; with --if-drifted.",
        ),
    ] = None,
    columns: Columns = "",
    type_: Type = None,
    order_lines: OrderLines = False,
    anonymous: Anonymous = "skip",
    json: Json = None,
) -> None:
    """Train on a log, compare with what serves, publish, and let it serve if it is no worse.

    The same log gives the same generation: call it as often as you like, from cron, Airflow or
    Kubernetes. A generation that is worse than what serves is a result: the exit code is 0. Too
    little data, or nothing to learn from, is exit code 1, and what serves stays; where the log is
    too short for labels it says from which date on they exist. With --if-drifted nothing is read
    where the users who are scored now are still like those of the training (`livevalue audit
    --drift` shows how far they are).

    Example:  livevalue retrain kafka

    Example:  livevalue retrain kafka --if-drifted --every 24h

    Example:  livevalue retrain orders.csv --type purchase --family gru --publish-only
    """
    from livevalue import running
    from livevalue.bars import stages
    from livevalue.jobs.generating import retrain as job
    from livevalue.rejections import lines
    from livevalue.repeating import repeatedly
    from scoring import outliers

    if psi is not None and not if_drifted:
        raise typer.BadParameter("--psi is a limit of --if-drifted: give both, or neither")
    out = Output(json)
    files = options(columns, type_, order_lines, anonymous)

    def once() -> None:
        settings = running.settings()
        beyond = settings.retrain.psi if psi is None else psi
        with stages(out) as tell:
            facts = asyncio.run(
                job(
                    settings,
                    src,
                    files,
                    out.say,
                    serve=not publish_only,
                    base=base or (),
                    drifted_beyond=beyond if if_drifted else None,
                    family=family,
                    progress=tell,
                )
            )
        if "events" in facts:
            out.say(
                f"folded: {counted(facts['events'], 'event')}, {facts['applied']:,} applied,"
                f" {counted(facts['duplicates'], 'duplicate')}"
            )
        for line in lines(facts):
            out.say(line)
        for line in outliers.lines(facts["metrics"].get("outliers")):
            out.say(line)
        _show_gate(facts["metrics"], out)
        verb = "serves" if facts["promoted"] else "does not serve"
        if facts.get("drifted") is False:
            verb = "goes on"
        out.say(f"generation {facts['generation'][:12]} {verb}: {facts['reason']}")
        out.result(facts)
        if not every and not facts["trained"] and facts.get("drifted") is not False:
            raise typer.Exit(1)

    repeatedly(once, every)


def _show_gate(found: dict[str, Any], out: Output) -> None:
    """The rolling origins: what the recipe would have said, and the champion's beside it."""
    if "origins" not in found:
        return
    against = found.get("against_champion", {})
    theirs = {row["as_of"]: row for row in against.get("rows", ())}
    corrector = found["level_corrector"]
    tried = {one["as_of"]: one for one in corrector["origins"]}
    if found["origins"]["note"]:
        out.say(found["origins"]["note"])
    rows, horizon = found["origins"]["rows"], found["origins"]["horizon"]
    if not rows:
        return
    out.table(
        (f"origin, {horizon}", "users", "nGini", "champion", "bias", "champion", "corrected"),
        (
            (
                row["as_of"][:10],
                row["users"],
                measured(row["ngini"]),
                measured(theirs.get(row["as_of"], {}).get("ngini")),
                measured(row["bias"]),
                measured(theirs.get(row["as_of"], {}).get("bias")),
                measured(tried[row["as_of"]]["corrected"]),
            )
            for row in rows
        ),
    )
    verdict = f"kept, x {corrector['factor']:.3f}" if corrector["kept"] else "left out"
    out.say(
        f"level corrector: {verdict} (it helps at {corrector['helped']} of "
        f"{counted(len(corrector['origins']), 'origin')}); refitted to {found['refitted_to'][:10]}"
    )


def ls(json: Json = None) -> None:
    """All generations, oldest first.

    Example:  livevalue generations ls
    """
    from livevalue import running
    from livevalue.jobs.generating import list_generations

    out = Output(json)
    facts = asyncio.run(list_generations(running.settings()))
    out.table(
        ("generation", "champion", "family", "trained until", "seen"),
        (
            (
                g["id"][:12],
                "yes" if g["champion"] else "",
                g["family"] or "damaged",
                _day(g["trained_until_ms"]),
                ", ".join(g["seen_types"] or ()),
            )
            for g in facts["generations"]
        ),
    )
    for one in facts["generations"]:
        if "damaged" in one:
            out.say(one["damaged"])
    out.result(facts)


def show(name: Annotated[str, typer.Argument(metavar="G")], json: Json = None) -> None:
    """The manifest of generation G, and what it costs: measured here, for a user and an event.

    Example:  livevalue generations show 3f9c0a1b22cd
    """
    import streams.threads  # noqa: F401  (a worker's threads: what it costs is measured)
    from livevalue import running
    from livevalue.jobs.generating import show_generation

    out = Output(json)
    facts = asyncio.run(show_generation(running.settings(), name))
    shown = dict(facts)
    if spread := facts["reference"]:
        # Ten bins of each column are for programs.
        shown["reference"] = f"{spread['users']:,} users, {len(spread['columns'])} columns"
    if cut := facts["params"].get("bounds"):
        shown["params"] = {**facts["params"], "bounds": counted(len(cut), "column")}
    shown["cost"] = costs(facts["cost"])
    out.table(("", ""), ((key, str(value)) for key, value in shown.items()))
    out.result(facts)


def promote(
    name: Annotated[str, typer.Argument(metavar="G")],
    base: _Base = None,
    columns: Columns = "",
    type_: Type = None,
    order_lines: OrderLines = False,
    json: Json = None,
) -> None:
    """Let generation G serve: a store is built aside with it, catches up, and is flipped to.

    Example:  livevalue promote 3f9c0a1b22cd
    """
    from livevalue import running
    from livevalue.bars import bar
    from livevalue.jobs.generating import promote as job

    out = Output(json)
    files = options(columns, type_, order_lines, "skip")
    with bar(out, "events") as tell:
        facts = asyncio.run(job(running.settings(), name, base or (), files, out.say, tell))
    out.say(f"generation {facts['generation'][:12]} serves from store {facts['store']}")
    out.result(facts)


def rollback(json: Json = None) -> None:
    """Back to the generation that served before; its store is still there.

    Example:  livevalue rollback
    """
    from livevalue import running
    from livevalue.jobs.generating import rollback as job

    out = Output(json)
    facts = asyncio.run(job(running.settings(), out.say))
    out.say(f"generation {facts['generation'][:12]} serves again")
    out.result(facts)


def _day(time_ms: int | None) -> str:
    from featurestore import times

    return "–" if time_ms is None else times.text(time_ms)[:10]
