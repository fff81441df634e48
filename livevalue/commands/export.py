"""`export`: values out to a file, for a warehouse or a reverse ETL."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from featurestore.wording import counted
from livevalue.moments import moment_ms
from livevalue.output import Json, Output

if TYPE_CHECKING:
    from livevalue.jobs.exporting import Format

ORDER = 36


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Use")(export)


def export(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What is there is replaced at the end.")
    ],
    format_: Annotated[
        Literal["parquet", "csv", "jsonl"] | None,
        typer.Option("--format", help="Without, as FILE ends: .parquet, .csv, .jsonl."),
    ] = None,
    changed_since: Annotated[
        str | None,
        typer.Option(metavar="T", help="Users whose document is as of T or later: date, RFC 3339."),
    ] = None,
    min_value: Annotated[
        float | None, typer.Option(metavar="X", help="Users worth at least X, by the headline.")
    ] = None,
    segment: Annotated[
        str | None, typer.Option(metavar="S", help="top10%, bottom20%, or percentiles: 25-65%.")
    ] = None,
    as_published: Annotated[
        bool,
        typer.Option("--as-published", help="Documents as they are, with quantiles; not now."),
    ] = False,
    json: Json = None,
) -> None:
    """The values of all users into one file, a row a user, for reverse ETL.

    Values are brought to now by each user's silence curve, so that all rows speak of one moment.
    `percentile` is the share of all users that are worth less; `tier` is top1, top10, top25, top50
    or rest. Both count every user, whichever rows are asked for. The file appears when it is
    whole, or not at all.

    Example:  livevalue export vip.csv --segment top10%

    Example:  livevalue export values.parquet --changed-since 2011-09-10
    """
    form = _format(file, format_)
    since = None if changed_since is None else moment_ms(changed_since)
    from livevalue import running
    from livevalue.bars import bar
    from livevalue.jobs.exporting import Choice, Segment
    from livevalue.jobs.exporting import export as job

    try:
        chosen = None if segment is None else Segment.parse(segment)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    out = Output(json)
    choice = Choice(since, min_value, chosen, as_published)
    with bar(out, "users") as tell:
        facts = asyncio.run(job(running.settings(), file, form, choice, tell))
    when = f"as of {facts['as_of']}" if facts["as_of"] else "as published"
    out.say(f"{facts['rows']:,} of {counted(facts['users'], 'user')}, {when}, in {facts['file']}")
    out.result(facts)


def _format(file: Path, asked: Format | None) -> Format:
    """As asked for, or as the file's name ends.

    >>> _format(Path("vip.csv"), None)
    'csv'
    """
    forms: dict[str, Format] = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl"}
    found = asked or forms.get(file.suffix.lower())
    if found is None:
        raise typer.BadParameter(
            f"{str(file)!r} does not say what it is: end it in .parquet, .csv or .jsonl, or give "
            "--format"
        )
    return found
