"""`recover`: what to do where a worker halted because the log or the store is not what it was."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from livevalue.output import Json, Output

if TYPE_CHECKING:
    from livevalue.jobs.recovering import Action

ORDER = 62
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan, change nothing.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    group = typer.Typer(
        help=(
            "After a lost log or a lost store. Stop the workers first; --dry-run shows the plan."
            "\n\nExample:  livevalue recover rebuild --dry-run"
        ),
        no_args_is_help=True,
    )
    group.command("adopt")(adopt)
    group.command("wipe")(wipe)
    group.command("rebuild")(rebuild)
    app.add_typer(group, name="recover", rich_help_panel="Care")


def adopt(dry_run: _DryRun = False, json: Json = None) -> None:
    """Keep the store and follow the log as it is now: a topic was made again, or cut.

    A topic that was made again is read from its start, others go on where they were. Every user is
    then published once.

    Example:  livevalue recover adopt --dry-run
    """
    _run("adopt", dry_run, json)


def wipe(dry_run: _DryRun = False, json: Json = None) -> None:
    """Delete the store that serves and its values, and fold the log anew from its start.

    Example:  livevalue recover wipe --dry-run
    """
    _run("wipe", dry_run, json)


def rebuild(
    archive: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Of `livevalue archive`: what the log lost."),
    ] = None,
    store: Annotated[
        str, typer.Option(metavar="S", help="Go on with this one; without, a new one is begun.")
    ] = "",
    dry_run: _DryRun = False,
    json: Json = None,
) -> None:
    """Fold archive and log into a store aside, then let it serve; the old one is kept.

    Every user is then published once. `livevalue stores drop` frees the old store.

    Example:  livevalue recover rebuild --archive /data/archive --dry-run
    """
    _run("rebuild", dry_run, json, archive, store)


def _run(
    action: Action, dry_run: bool, json: Path | None, archive: Path | None = None, store: str = ""
) -> None:
    from livevalue import running
    from livevalue.bars import bar
    from livevalue.jobs.recovering import recover

    out = Output(json)
    with bar(out, "events") as tell:
        facts = asyncio.run(
            recover(
                running.settings(),
                action,
                dry_run=dry_run,
                archive=archive,
                store=store,
                progress=tell,
            )
        )
    for row in facts["plan"]:
        moved = f"{row['from']} -> {row['to']}" if row["changes"] else "as it is"
        out.say(f"partition {row['partition']}, store {row['store']}: {moved}")
        for note in row["notes"]:
            out.say(f"  {note}")
    for warning in facts["warnings"]:
        out.say(f"! {warning}")
    if dry_run:
        out.say("nothing was changed; without --dry-run this is done")
    else:
        out.say("done: start the workers, those that halted too (`livevalue run`)")
    out.result(facts)
