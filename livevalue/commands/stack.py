"""`up`: the embedded stack until it is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from livevalue import running
from livevalue.output import Json, Output

ORDER = 10
_PANEL = "Start"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command(rich_help_panel=_PANEL)(up)


def up(
    dir: Annotated[
        Path | None,
        typer.Option(metavar="D", help="Everything is kept here; LIVEVALUE_DIR or .livevalue."),
    ] = None,
    json: Json = None,
) -> None:
    """Kafka and Valkey on this machine until Ctrl-C, with the topics made.

    The data stay in D and are there at the next start. Other commands find this stack by
    D/stack.json: started in the same folder where D is .livevalue, else with LIVEVALUE_DIR=D.

    Example:  livevalue up --dir /tmp/trial
    """
    from livevalue.serving import up as run
    from livevalue.stopping import stopped_by_signal

    out = Output(json)

    def ready(found: dict[str, object]) -> None:
        out.say(f"Kafka {found['kafka']}   Valkey {found['redis']}   in {found['dir']}")
        where = running.prefix(dir or running.default_folder())
        out.say(f"Ready. A worker:  {where}livevalue run      Stop: Ctrl-C")
        out.result({name: found[name] for name in ("kafka", "redis", "pid")})

    with stopped_by_signal() as stopped:
        run(dir, stopped, ready)
    out.say("Stopped; the data are kept.")
