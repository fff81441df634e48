"""`dlq`, `erase`: records that were not counted, and users to be forgotten."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated

import typer

from livevalue.output import Json, Output, Refused

ORDER = 60
_PANEL = "Care"
_Reason = Annotated[str | None, typer.Option(metavar="R", help="Only of this reason.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    group = typer.Typer(
        help="Dead letters: records that were not counted, and why.\n\nExample:  livevalue dlq ls",
        no_args_is_help=True,
    )
    group.command("ls")(ls)
    group.command("show")(show)
    group.command("replay")(replay)
    app.add_typer(group, name="dlq", rich_help_panel=_PANEL)
    app.command(rich_help_panel=_PANEL)(erase)


def ls(
    reason: _Reason = None,
    n: Annotated[int, typer.Option("-n", metavar="N", min=1, help="Rows at most.")] = 50,
    json: Json = None,
) -> None:
    """Dead letters with their reasons, newest last; the counts are of all.

    Example:  livevalue dlq ls --reason late
    """
    from livevalue import running
    from livevalue.jobs.letters import letters

    out = Output(json)
    found = [d for d in letters(running.settings()) if reason is None or d.reason == reason]
    counts = Counter(d.reason for d in found)
    out.table(
        ("at", "topic", "offset", "reason", "message"),
        ((d.at, f"{d.topic}/{d.partition}", d.offset, d.reason, d.message) for d in found[-n:]),
    )
    out.say(", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none")
    out.result({"records": [d.as_json() for d in found], "counts": dict(counts)})


def show(
    at: Annotated[str, typer.Argument(metavar="PARTITION:OFFSET", help="As `dlq ls` shows it.")],
    json: Json = None,
) -> None:
    """One dead letter with its raw bytes and headers.

    Example:  livevalue dlq show 0:17
    """
    if not re.fullmatch("[0-9]+:[0-9]+", at):
        raise typer.BadParameter(f"{at!r} is no PARTITION:OFFSET: write 0:17, as `dlq ls` shows it")
    from livevalue import running
    from livevalue.jobs.letters import letters

    out = Output(json)
    found = next((d for d in letters(running.settings()) if d.at == at), None)
    if found is None:
        raise Refused(f"there is no dead letter {at!r}: `livevalue dlq ls` shows them")
    facts = found.as_json(raw=True)
    out.table(("", ""), ((name, str(value)) for name, value in facts.items()))
    out.result({"records": [facts]})


def replay(reason: _Reason = None, json: Json = None) -> None:
    """Send dead letters to their topics again, for instance after a setting was put right.

    Events with an id that were counted meanwhile are dropped as duplicates.

    Example:  livevalue dlq replay --reason unknown_currency
    """
    from livevalue import running
    from livevalue.jobs.letters import replay_letters

    out = Output(json)
    facts = replay_letters(running.settings(), reason)
    out.say(f"{facts['sent']} sent again, {facts['skipped']} skipped, their bytes are cut or gone")
    out.result(facts)


def erase(user: Annotated[str, typer.Argument(metavar="USER")], json: Json = None) -> None:
    """Forget a user: an erase record on every source; what comes later counts again.

    Example:  livevalue erase ada
    """
    from livevalue import running
    from livevalue.jobs.letters import erase as job

    out = Output(json)
    facts = job(running.settings(), user)
    out.say(f"{user} will be forgotten in every store and in the scores topic")
    out.result(facts)
