"""`replay`, `digest`, `verify`, `archive`: the log, and whether the store holds what it says."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated

import typer

from featurestore.wording import counted
from livevalue.output import Json, Output, Refused
from livevalue.srcs import Anonymous, Columns, OrderLines, Src, Type, options

ORDER = 40
_PANEL = "The log"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command(rich_help_panel=_PANEL)(replay)
    app.command(rich_help_panel=_PANEL)(digest)
    app.command(rich_help_panel=_PANEL)(verify)
    app.command(rich_help_panel=_PANEL)(archive)


def replay(
    src: Src,
    generation: Annotated[
        str, typer.Option(metavar="G", help="Score with this one; without, the one that serves.")
    ] = "",
    columns: Columns = "",
    type_: Type = None,
    order_lines: OrderLines = False,
    anonymous: Anonymous = "skip",
    json: Json = None,
) -> None:
    """Fold a log into a scratch store and score it; nothing live changes.

    What is rejected is counted by reason. Exit 1 if nothing of a log could be applied.

    Example:  livevalue replay kafka

    Example:  livevalue replay orders.csv --type purchase --columns user_id=customer,amount=total
    """
    from livevalue import running
    from livevalue.bars import bar
    from livevalue.jobs.replaying import replay_source
    from livevalue.rejections import lines, totals

    out = Output(json)
    files = options(columns, type_, order_lines, anonymous)
    with bar(out, "events") as tell:
        facts = asyncio.run(replay_source(running.settings(), src, files, generation, tell))
    out.table(*totals(facts))
    for line in lines(facts):
        out.say(line)
    out.result(facts)
    if facts["rejected"] and not facts["applied"]:
        raise Refused(
            f"nothing was applied and {counted(facts['rejected'], 'was', 'were')} rejected: mend "
            "what the reasons above name; files with other columns or without a type need "
            "--columns or --type"
        )


def digest(json: Json = None) -> None:
    """Digest of the live store over exact fields; `replay` of the same log gives the same.

    Example:  livevalue digest --json -
    """
    from livevalue import running
    from livevalue.bars import bar
    from livevalue.jobs.replaying import digest_live

    out = Output(json)
    with bar(out, "users") as tell:
        facts = asyncio.run(digest_live(running.settings(), tell))
    out.table(list(facts), [list(facts.values())])
    out.result(facts)


def verify(
    sample: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="About so many users, not all.")
    ] = None,
    base: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="The files that the store was built from first."),
    ] = None,
    columns: Columns = "",
    type_: Type = None,
    order_lines: OrderLines = False,
    json: Json = None,
) -> None:
    """Replay the log up to the store's watermark and compare user by user; exit 1 on differences.

    Works on a moving store. Exact: identities, counts, money. Within tolerances: carries and
    documents, and the rank and the date of the next score, which follow from them. What the order
    in which topics were read may change is counted apart, by name, and so is what a compacted topic
    no longer tells.

    Example:  livevalue verify --sample 1000
    """
    from livevalue import running
    from livevalue.bars import bar
    from livevalue.jobs.replaying import verify_live
    from streams.verify import EXCEPTIONS

    out = Output(json)
    files = options(columns, type_, order_lines, "skip")
    with bar(out, "users compared") as tell:
        facts = asyncio.run(
            verify_live(running.settings(), sample, base or (), files, lambda n: tell(n, None))
        )
    out.say(f"{counted(facts['users'], 'user')} compared, {facts['different']:,} different")
    for warning in facts["warnings"]:
        out.say(f"! {warning}")
    if facts["unswept"]:
        out.say(
            f"of {facts['unswept']:,} the documents were not compared: a sweep is to publish them"
            " again; run this once more when it has"
        )
    for name, number in facts["excepted"].items():
        if number:
            how = counted(number, "differs", "differ")
            out.say(f"{how} as an exception may: {EXCEPTIONS[name]}")
    for row in facts["first_differences"]:
        out.say(f"  {row['user_id']} (partition {row['partition']}): {', '.join(row['differs'])}")
    out.result(facts)
    if facts["different"]:
        raise typer.Exit(1)


def archive(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER")] = Path("archive"),
    every: Annotated[str, typer.Option(metavar="1h", help="Again and again until stopped.")] = "",
    json: Json = None,
) -> None:
    """Copy what the topics hold beyond the archive's end to Parquet, exact by offsets.

    Once a day it also keeps what was served, for `livevalue audit`.

    Example:  livevalue archive /data/archive --every 1h
    """
    from livevalue import running
    from livevalue.bars import bar
    from livevalue.jobs.snapshots import take_daily
    from livevalue.jobs.storing import archive_log
    from livevalue.repeating import repeatedly

    out = Output(json)
    settings = running.settings()

    def once() -> None:
        began = time.monotonic()
        with bar(out, "events archived") as tell:
            facts = asyncio.run(archive_log(settings, folder, lambda n: tell(n, None)))
        took = time.monotonic() - began
        files = counted(facts["files"], "new file")
        out.say(f"{counted(facts['events'], 'event')} in {files}, {took:.1f} s")
        for warning in facts["warnings"]:
            out.say(f"! {warning}")
        snapshot, why_not = asyncio.run(take_daily(settings, folder))
        if snapshot or why_not:
            out.say(f"what is served: {snapshot.get('snapshot') or why_not}")
        out.result({**facts, **snapshot})

    repeatedly(once, every)
