"""`settings` and `doctor`: what is in force, and whether it works."""

from __future__ import annotations

from dataclasses import asdict

import typer

from livevalue.output import Json, Output

ORDER = 21
_PANEL = "Set up"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command(rich_help_panel=_PANEL)(settings)
    app.command(rich_help_panel=_PANEL)(doctor)


def settings(json: Json = None) -> None:
    """Every setting that is in force and where it comes from; secrets masked.

    Example:  LIVEVALUE_KAFKA__PARTITIONS=16 livevalue settings
    """
    from livevalue.settings_list import listed

    rows, out = listed(), Output(json)
    out.table(("setting", "value", "from"), ((row.name, row.shown, row.origin) for row in rows))
    out.result({"settings": [asdict(row) for row in rows]})


def doctor(json: Json = None) -> None:
    """Checks settings, broker, Redis, topics, partitioner, clock and versions.

    Each line says what is well, or what to do. Exit code 1 if anything keeps a worker from
    working; warnings do not.

    Example:  livevalue doctor
    """
    from livevalue.checks import run_all

    out = Output(json)
    checks = []
    for check in run_all():
        checks.append(check)
        mark = {"ok": "✓", "warning": "!", "failed": "✗"}[check.status]
        out.say(f"{mark} {check.name:<12} {check.message}")
    out.result({"checks": [asdict(check) for check in checks]})
    if any(check.status == "failed" for check in checks):
        raise typer.Exit(1)
