"""`map`: a vendor's stream in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from featurestore.wording import counted
from livevalue.output import Json, Output

if TYPE_CHECKING:
    from livevalue.mapping.report import Report

ORDER = 28
_SHOWN = 40  # names on the terminal; --json has all


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("map", rich_help_panel="Use")(map_stream)


def map_stream(
    source: Annotated[
        list[str],
        typer.Option(metavar="kafka:TOPIC|FILE", help="A topic, or JSONL files (give it again)."),
    ],
    vendor: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="V",
            help="segment, rudderstack, posthog, ga4, ga4-bigquery, or a FILE.toml.",
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Produce nothing; report what would become of it.")
    ] = False,
    anonymous: Annotated[
        Literal["skip", "separate"],
        typer.Option(help="Visitors without a user: leave them out, or each a user of their own."),
    ] = "skip",
    currency: Annotated[
        str, typer.Option(metavar="C", help="Of amounts that name none; else those are parked.")
    ] = "",
    money_unit: Annotated[
        Literal["major", "minor", "micro"] | None,
        typer.Option(help="Of the stream's amounts, where it is not what the mapping says."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At most N messages.")
    ] = None,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="A topic: stop at its present end.")
    ] = False,
    group: Annotated[
        str,
        typer.Option(
            metavar="G",
            help="A topic: consumer group that keeps the position; one of its own if not given.",
        ),
    ] = "",
    json: Json = None,
) -> None:
    """A vendor's stream of events into the input topics, keyed and partitioned as they must be.

    A topic is followed until SIGTERM or Ctrl-C, and taken up where it was left. What cannot be
    mapped goes to the dead letters with the reason. Docs: docs/mapping.md.

    Example:  livevalue map --source kafka:segment-events --as segment --dry-run

    Example:  livevalue map --source export.jsonl.gz --as ga4-bigquery --currency EUR
    """
    from livevalue import running
    from livevalue.mapping import moving, spec
    from livevalue.mapping.engine import Mapper
    from livevalue.stopping import stopped_by_signal

    named = [one.removeprefix(moving.KAFKA) for one in source if one.startswith(moving.KAFKA)]
    if named and (len(source) > 1 or not named[0]):
        raise typer.BadParameter("give one kafka:TOPIC, or files")
    if currency and not (len(currency) == 3 and currency.isascii() and currency.isupper()):
        raise typer.BadParameter(f"--currency {currency!r}: three letters of ISO 4217, such as EUR")
    out, settings = Output(json), running.settings()
    mapping = spec.load(vendor)
    told_money = {"default_currency": currency, "unit": money_unit}
    money = mapping.money.model_copy(
        update={name: value for name, value in told_money.items() if value}
    )
    mapper = Mapper(
        mapping.model_copy(update={"money": money}),
        separate=anonymous == "separate",
        limit=settings.kafka.max_record_bytes,
    )
    with stopped_by_signal() as stopped, out.counting("messages") as told:
        if named:
            report = moving.from_kafka(
                named[0],
                settings,
                mapper,
                group=group or f"{settings.kafka.app}.map.{named[0]}",
                dry_run=dry_run,
                until_end=until_end,
                limit=limit,
                stopped=stopped,
                told=told,
            )
        else:
            report = moving.from_files(
                [Path(one) for one in source],
                settings,
                mapper,
                dry_run=dry_run,
                limit=limit,
                stopped=stopped,
                told=told,
            )
    _show(out, report, dry_run)
    out.result({**report.as_json(), "dry_run": dry_run})


def _show(out: Output, report: Report, dry_run: bool) -> None:
    rows = report.names()
    out.table(
        ("name", "mapped", "ignored", "anonymous", "parked", "becomes"),
        (
            (
                row["name"],
                row["mapped"],
                row["ignored"],
                row["anonymous"],
                row["parked"],
                row["becomes"] if row["in_mapping"] else "not in the mapping",
            )
            for row in rows[:_SHOWN]
        ),
    )
    if len(rows) > _SHOWN:
        out.say(f"and {counted(len(rows) - _SHOWN, 'more name')}: --json has all")
    for sums in report.money():
        out.say(
            f"{counted(sums['orders'], 'order')} of {sums['smallest']} to {sums['largest']} "
            f"{sums['currency']}, {sums['mean']} on average; {counted(sums['refunds'], 'refund')} "
            f"of {sums['refunded']} together"
        )
    for bad in report.worst():
        name = f" {bad['name']}" if bad["name"] else ""
        out.say(
            f"! {bad['at']}{name}: {bad['reason']} ({bad['like_it']:,} like it): {bad['detail']}"
        )
        out.say(f"    change: {bad['change']}")
    counts = report.counts
    mapped = counted(counts["mapped"], "event")
    would = "would be " if dry_run else ""
    out.say(
        f"{counted(report.messages, 'message')}: {mapped} {would}mapped, "
        f"{counts['ignored']:,} ignored, {counts['anonymous']:,} anonymous, "
        f"{counts['parked']:,} {would}parked"
    )
