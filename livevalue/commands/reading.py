"""`get`, `top`, `subscribe`: values as they are, ranked, and as they change."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import typer

from featurestore.wording import counted
from livevalue.moments import moment
from livevalue.output import Json, Output, Refused

ORDER = 30
_PANEL = "Use"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command(rich_help_panel=_PANEL)(get)
    app.command(rich_help_panel=_PANEL)(top)
    app.command(rich_help_panel=_PANEL)(subscribe)


def get(
    user: Annotated[str, typer.Argument(metavar="USER")],
    at: Annotated[
        str | None,
        typer.Option(metavar="T", help="A time, such as 2011-09-10 or 2011-09-10T12:00:00Z."),
    ] = None,
    json: Json = None,
) -> None:
    """What a user is worth: now, or at T if they stay silent until then.

    Example:  livevalue get ada --at 2030-01-01
    """
    from livevalue.client import ValueClient

    out = Output(json)
    when = None if at is None else moment(at)
    with ValueClient.connect() as values:
        document = values.get(user, when)
    if document is None:
        raise Refused(
            f"no value is known of user {user!r}: no event of theirs has been folded yet, or none"
            " since they were erased"
        )
    out.say(f"{document['user_id']}  as of {document['as_of']}  ({document['evidence']})")
    unit = document["unit"]["code"]
    values = document["values"]
    more = [name for name in ("p50", "p90") if all(name in v for v in values.values())]
    out.table(
        ("horizon", f"expected {unit}", "P(active)", *more),
        (
            (name, v["expected"], v["p_active"], *(v[column] for column in more))
            for name, v in values.items()
        ),
    )
    past = document["history"]
    out.say(
        f"{counted(past['orders'], 'order')}, {past['spent']:,.2f} {unit} spent, last order "
        f"{past['last_order_at'] or 'never'}; revision {document['revision']}, "
        f"because of {_cause(document)}"
    )
    out.result(document)


def top(
    n: Annotated[int, typer.Option("-n", metavar="N", min=1, help="How many users.")] = 20,
    json: Json = None,
) -> None:
    """The users of the highest value.

    Example:  livevalue top -n 10
    """
    from livevalue.client import ValueClient

    out = Output(json)
    with ValueClient.connect() as values:
        documents = values.top(n)
    out.table(
        ("user", "expected", "P(active)", "orders", "spent", "last order"),
        (
            (
                d["user_id"],
                d["values"][d["headline"]]["expected"],
                d["values"][d["headline"]]["p_active"],
                d["history"]["orders"],
                d["history"]["spent"],
                d["history"]["last_order_at"],
            )
            for d in documents
        ),
    )
    out.result(documents)


def subscribe(
    user: Annotated[str | None, typer.Option(metavar="U", help="Only of this user.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="First what the topic holds.")
    ] = False,
    n: Annotated[
        int | None, typer.Option("-n", metavar="N", min=1, help="End after N updates.")
    ] = None,
    idle: Annotated[
        float | None, typer.Option(metavar="S", help="End after S seconds without an update.")
    ] = None,
    json: Json = None,
) -> None:
    """Updates as they come, a line each, until Ctrl-C; --json writes a document a line.

    Example:  livevalue subscribe --user ada
    """
    from livevalue.client import ValueClient

    out = Output(json)
    with ValueClient.connect() as values:
        updates = values.subscribe(user, from_beginning=from_beginning, idle_s=idle)
        try:
            for document in islice(updates, n):
                out.say(_line(document))
                out.result_line(document)
        except KeyboardInterrupt:
            pass  # how one ends it


def _line(document: dict[str, Any]) -> str:
    """One update in one line, with what moved it."""
    if document.get("erased"):
        return f"{document['user_id']}  erased"
    name = document["headline"]
    now = document["values"][name]["expected"]
    previous = (document.get("previous") or {}).get(name)
    moved = "new" if previous is None else f"{now - previous:+,.2f}"
    return (
        f"{document['as_of']}  {document['user_id']}  {name} {now:,.2f} "
        f"{document['unit']['code']}  {moved}  {_cause(document)}"
    )


def _cause(document: dict[str, Any]) -> str:
    cause = document["cause"]
    return f"{cause['type']} {cause['event_id']}" if cause.get("event_id") else str(cause["type"])
