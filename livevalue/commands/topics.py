"""`topics`: what they should be and what they are."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from livevalue.output import Json, Output

ORDER = 20
_PANEL = "Set up"
_DONE = {"create": "made", "compact": "compacted", "keep": "kept"}
_TODO = {"create": "make", "compact": "compact", "keep": "keep"}


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command(rich_help_panel=_PANEL)(topics)


def topics(
    plan: Annotated[bool, typer.Option("--plan", help="Show what --apply would do.")] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="Make what is missing, compact the outputs.")
    ] = False,
    json: Json = None,
) -> None:
    """The input topics, scores and dead letters: --plan shows, --apply makes what is missing.

    Partitions and replication are settings (LIVEVALUE_KAFKA__PARTITIONS, __REPLICATION). What
    exists is left as it is, but that outputs are made compacted; what a worker could not work with
    is said and gives exit code 1.

    Example:  livevalue topics --apply
    """
    if plan == apply:
        raise typer.BadParameter("give one of --plan and --apply")
    from livevalue.caveats import caveats
    from livevalue.running import settings as found_settings
    from streams import topics as work

    settings, out = found_settings(), Output(json)
    steps = work.apply(settings) if apply else work.plan(settings)
    words = _DONE if apply else _TODO
    out.table(
        ("topic", "", "partitions", "replication", "settings"),
        (
            (
                step.name,
                words[step.action],
                step.partitions,
                step.replication,
                " ".join(f"{name}={value}" for name, value in step.config.items()),
            )
            for step in steps
        ),
    )
    known = {step.name for step in steps if step.action == "create"}
    problems = [found for found in work.check(settings) if apply or found.topic not in known]
    warnings = caveats(settings)
    out.result(
        {
            "topics": [{**asdict(step), "config": dict(step.config)} for step in steps],
            "problems": [asdict(problem) for problem in problems],
            "warnings": warnings,
        }
    )
    for said in [*warnings, *(problem.message for problem in problems)]:
        out.say(f"! {said}")
    if problems:
        raise typer.Exit(1)
