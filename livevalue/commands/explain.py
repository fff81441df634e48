"""`explain`: what each recent event does to a user's value."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from featurestore.wording import counted
from livevalue.output import Json, Output

ORDER = 35


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command(rich_help_panel="Use")(explain)


def explain(user: Annotated[str, typer.Argument(metavar="USER")], json: Json = None) -> None:
    """A user's value without each recent event: what moved it, strongest first.

    Recent are the events whose order may still change (LIVEVALUE_FEATURES__LATENESS); what is
    older is folded for good.

    Example:  livevalue explain ada
    """
    from livevalue import running
    from livevalue.jobs.explaining import explain as job

    out = Output(json)
    facts = asyncio.run(job(running.settings(), user))
    name = facts["headline"]
    out.say(
        f"{user} as of {facts['as_of']}: {name} {facts['values'][name]:,.2f}, without the recent "
        f"events {facts['without_recent'][name]:,.2f}"
    )
    out.table(
        ("event", "action", "at", "value", f"does to {name}"),
        (
            (r["type"], r["action"], r["event_time"], r["value"], r["change"][name])
            for r in facts["reasons"]
        ),
    )
    verb = "is" if facts["older"] == 1 else "are"
    out.say(
        f"{facts['older']} of {counted(facts['events'], 'event')} {verb} older and folded for good"
    )
    out.result(facts)
