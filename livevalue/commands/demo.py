"""`demo`: the whole thing on this machine, on a year of real orders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featurestore.wording import counted
from livevalue.output import Json, Output

ORDER = 5


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Start")(demo)


def demo(
    seconds: Annotated[
        float | None, typer.Option(metavar="N", min=20, help="End by itself after N seconds.")
    ] = None,
    dir: Annotated[
        Path | None, typer.Option(metavar="D", help="Everything is kept here; else .livevalue.")
    ] = None,
    simulate: Annotated[
        bool,
        typer.Option("--simulate", help="Add sessions drawn from the past, labelled as simulated."),
    ] = False,
    json: Json = None,
) -> None:
    """Real orders through real Kafka and Valkey: values move, and you see why.

    A year of orders of a UK gift-ware shop (UCI Online Retail, CC BY 4.0) is played in at about
    two days a second. A retrain runs in the background and is swapped in or refused. At the end
    you see what the users that were picked by value went on to spend.

    Example:  livevalue demo --seconds 90
    """
    from livevalue.demo.story import Demo
    from livevalue.running import default_folder

    out = Output(json)
    report = Demo(dir or default_folder(), seconds, simulate, out.console).run()
    simulated = f" ({report.simulated:,} of them simulated)" if report.simulated else ""
    out.say(
        f"{counted(report.events, 'event')}{simulated}, {counted(report.updates, 'update')} of "
        f"{counted(report.users, 'user')}"
    )
    out.say(
        f"first moved value after {report.first_value_s} s; {report.anonymous:,} lines of the "
        "original log have no customer and are left out"
    )
    out.result(report.as_json())
