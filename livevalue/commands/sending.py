"""`send`: one event, or a log in time order."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from featurestore.wording import counted
from livevalue.output import Json, Output, Refused

ORDER = 29
_PANEL = "Use"
_TYPES = ("browse", "purchase", "interaction")


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command(rich_help_panel=_PANEL)(send)


def send(
    type: Annotated[
        str | None, typer.Argument(metavar="TYPE", help="browse, purchase or interaction.")
    ] = None,
    user: Annotated[str | None, typer.Option(metavar="U", help="Whose event it is.")] = None,
    amount: Annotated[
        str | None, typer.Option(metavar="A", help="purchase: in major units; < 0 a refund.")
    ] = None,
    currency: Annotated[str | None, typer.Option(metavar="C", help="purchase: ISO 4217.")] = None,
    order: Annotated[str | None, typer.Option(metavar="ID", help="purchase: order_id.")] = None,
    action: Annotated[
        str | None, typer.Option(metavar="A", help="interaction: cart_add, like, play, …")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="U", help="interaction: target_user_id.")
    ] = None,
    rating: Annotated[float | None, typer.Option(metavar="R", help="interaction.")] = None,
    duration_ms: Annotated[int | None, typer.Option(metavar="MS", help="interaction.")] = None,
    text: Annotated[str | None, typer.Option(metavar="TEXT", help="interaction.")] = None,
    page: Annotated[str | None, typer.Option(metavar="P", help="browse.")] = None,
    query: Annotated[str | None, typer.Option(metavar="Q", help="browse: searched for.")] = None,
    dwell_ms: Annotated[int | None, typer.Option(metavar="MS", help="browse.")] = None,
    item: Annotated[str | None, typer.Option(metavar="ID", help="item_id.")] = None,
    category: Annotated[str | None, typer.Option(metavar="C", help="Of the item.")] = None,
    id: Annotated[str | None, typer.Option(metavar="ID", help="event_id; made if absent.")] = None,
    time: Annotated[
        str | None, typer.Option(metavar="T", help="event_time, RFC 3339 with zone; now if absent.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Send a log, in time order.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="N", min=0.001, help="With --from: events a second.")
    ] = None,
    columns: Annotated[
        str, typer.Option(metavar="NAME=COLUMN,…", help="With --from: names of other columns.")
    ] = "",
    order_lines: Annotated[
        bool, typer.Option("--order-lines", help="With --from: join the lines of an order.")
    ] = False,
    json: Json = None,
) -> None:
    """One event, or with --from a whole log (JSONL, CSV, Parquet) in time order.

    With --from, TYPE says what the file's rows are where the file does not. Exit 1 if all of them
    were rejected.

    Example:  livevalue send purchase --user ada --amount 49.90

    Example:  livevalue send --from orders.csv --columns user_id=CustomerID --rate 500
    """
    from livevalue.running import settings as found_settings

    out = Output(json)
    if type is not None and type not in _TYPES:
        raise typer.BadParameter(f"{type!r} is no type of event: use {', '.join(_TYPES)}")
    if source is not None:
        _send_file(out, source, type, columns, order_lines, rate)
        return
    if type is None or user is None:
        raise typer.BadParameter("give TYPE and --user, or --from FILE")
    from livevalue import sending

    fields: dict[str, Any] = {
        "event_id": id,
        "event_time": time,
        "item_id": item,
        "category": category,
        "amount": amount,
        "currency": currency,
        "order_id": order,
        "action": action,
        "target_user_id": target,
        "rating": rating,
        "duration_ms": duration_ms,
        "text": text,
        "page": page,
        "query": query,
        "dwell_ms": dwell_ms,
    }
    settings = found_settings()
    now_ms = 0 if time else sending.now_ms(settings)
    sent = sending.send(settings, sending.event(type, user, fields, now_ms))
    out.say(f"{sent.topic} partition {sent.partition} offset {sent.offset}")
    out.result(asdict(sent))


def _send_file(
    out: Output,
    path: Path,
    kind: str | None,
    columns: str,
    order_lines: bool,
    rate: float | None,
) -> None:
    from livevalue.running import settings as found_settings
    from livevalue.sending import send_all
    from livevalue.sources import FileOptions, parse_columns

    settings = found_settings()
    options = FileOptions(parse_columns(columns), kind, order_lines)
    log = options.open([path], settings)
    with out.counting(f"sending {path.name}") as told:
        sent = send_all(settings, log.records(), rate, told)
    left_out = {name: n for name, n in log.counts.items() if name not in ("rows", "order_lines")}
    told_out = ", ".join(f"{n:,} {name}" for name, n in sorted(left_out.items()) if n)
    out.say(f"{counted(sent, 'event')} sent" + (f"; {told_out}" if told_out else ""))
    for rejection in log.rejections[:5]:
        # The other commands that read files have an option where this one has TYPE.
        detail = rejection.detail.replace("--type", f"`livevalue send purchase --from {path.name}`")
        out.say(f"! {rejection.place}: {rejection.reason}: {detail}")
    out.result({"sent": sent, **left_out})
    rejected = sum(n for name, n in left_out.items() if name.startswith("rejected"))
    if rejected and not sent:
        raise Refused(
            f"nothing was sent, {counted(rejected, 'row')} rejected: mend what the reasons above "
            "name; rows without a type need TYPE before --from, other columns --columns"
        )
