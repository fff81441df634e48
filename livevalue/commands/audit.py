"""`audit`: what was served against what came true; and whether the users have drifted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.wording import counted
from livevalue.output import Json, Output, measured
from livevalue.srcs import Anonymous, Columns, OrderLines, Type, options

if TYPE_CHECKING:
    from scoring.retraining.audit import Row

ORDER = 56
# field -> heading, narrow enough for 80 columns
_SHOWN = {
    "ngini": "nGini",
    "spearman": "rank",
    "bias": "bias",
    "mae": "MAE",
    "auc": "AUC",
    "brier": "Brier",
    "cover80": "cover80",
}
_TOP = 12  # columns of a drift that are shown


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Models")(audit)


def audit(
    src: Annotated[
        list[str] | None,
        typer.Argument(metavar="SRC", help="As for retrain; without, the archive and then kafka."),
    ] = None,
    archive: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where `livevalue archive` writes.")
    ] = Path("archive"),
    snapshot: Annotated[
        bool, typer.Option("--snapshot", help="Only take today's snapshot of what is served.")
    ] = False,
    drift: Annotated[
        bool, typer.Option("--drift", help="Compare the live users with those of the training.")
    ] = False,
    last: Annotated[
        int, typer.Option(metavar="N", min=1, help="Snapshots of each horizon, the newest.")
    ] = 30,
    bias: Annotated[
        float, typer.Option(metavar="X", help="Alarm where the level is below X or above 1/X.")
    ] = 0.7,
    cover: Annotated[
        float, typer.Option(metavar="X", help="Alarm where the coverage is X or more off .8.")
    ] = 0.08,
    rank: Annotated[
        float, typer.Option(metavar="X", help="Alarm where nGini is X below that of past spend.")
    ] = 0.05,
    least: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="No alarm below N users active or expected to be."),
    ] = 100,
    psi: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0,
            show_default="setting retrain.psi",
            help="Alarm where a column's stability index is above X; with --drift.",
        ),
    ] = None,
    fail_on_alarm: Annotated[
        bool,
        typer.Option(
            "--fail-on-alarm", help="Exit 1 where the newest rows or the drift hold an alarm."
        ),
    ] = False,
    metrics: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.prom", help="Write them for node_exporter's textfile collector."
        ),
    ] = None,
    columns: Columns = "",
    type_: Type = None,
    order_lines: OrderLines = False,
    anonymous: Anonymous = "skip",
    json: Json = None,
) -> None:
    """What was served against what came true: ranking, level and coverage.

    Each day's snapshot of the served values is joined with what users then spent, once that is
    known: snapshot + horizon + allowed lateness. Rows are by generation, horizon and evidence;
    `!` marks an alarm. Take snapshots with --snapshot, or with `livevalue archive --every 1h`. What
    `livevalue shadow` kept of another generation is compared with what served then. --drift looks
    at each column that the serving generation reads, and at what it predicts: are the live users
    still spread over it as those of the training were?

    Example:  livevalue audit --metrics /var/lib/node_exporter/livevalue.prom

    Example:  livevalue audit --drift
    """
    from livevalue import running
    from livevalue.bars import bar
    from livevalue.jobs import auditing, shadowing, snapshots

    if psi is not None and not drift:
        raise typer.BadParameter("--psi is a limit of --drift: give both, or neither")
    out = Output(json)
    settings = running.settings()
    if snapshot:
        with bar(out, "users") as tell:
            facts = asyncio.run(snapshots.take(settings, archive, lambda n: tell(n, None)))
        what = counted(facts["users"], "user") if facts["taken"] else "there already"
        out.say(f"snapshot of {facts['snapshot']}, {what}: {facts['file']}")
        out.result(facts)
        return
    drifted = None
    if drift:
        with bar(out, "users") as tell:
            drifted = asyncio.run(auditing.drift(settings, psi, lambda n: tell(n, None)))
        _show_drift(drifted, out)
    # With --drift alone there need be no snapshot yet.
    facts = auditing.unjudged()
    if not drift or src or snapshots.listed(archive) or shadowing.listed(archive):
        from scoring.retraining.audit import Thresholds

        thresholds = _thresholds(Thresholds, bias=bias, cover=cover, rank=rank, least=least)
        files = options(columns, type_, order_lines, anonymous)
        with bar(out, "events") as tell:
            facts = auditing.audit(
                settings, src or [], files, archive, thresholds, last, lambda n: tell(n, None)
            )
        _show(facts, out)
        _show_shadows(facts["shadow"], out)
    if drifted is not None:
        facts["alarm"] = facts["alarm"] or drifted["drifted"] is True
    if metrics is not None:
        auditing.write_metrics(metrics, facts, drifted)
    out.result(facts if drifted is None else {**facts, "drift": drifted})
    if fail_on_alarm and facts["alarm"]:
        raise typer.Exit(1)


def _thresholds(kind: Any, **given: float) -> Any:
    """As given; wrong usage where one of them cannot be."""
    from pydantic import ValidationError

    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"--{first['loc'][0]} {first['input']}: {first['msg']}") from None


def _show(facts: dict[str, Any], out: Output) -> None:
    """The newest rows of each horizon whole, earlier ones in all; then what is still to come."""
    rows: list[Row] = facts["rows"]
    for days in sorted({row["horizon_days"] for row in rows}):
        of = [row for row in rows if row["horizon_days"] == days]
        out.say(counted(days, "day"))
        out.table(
            ("snapshot", "generation", "evidence", "users", *_SHOWN.values(), ""),
            (
                (
                    row["snapshot"][:10],
                    row["generation"],
                    row["evidence"],
                    f"{row['users']:,}",
                    *(measured(row[name]) for name in _SHOWN),
                    "".join(f"! {name} " for name in row["alarms"]).strip(),
                )
                for row in of
                if row["newest"] or row["evidence"] == "all"
            ),
        )
        out.say("")
    first: dict[int, dict[str, Any]] = {}
    for one in facts["waiting"]:
        first.setdefault(one["horizon_days"], one)
    for days, one in sorted(first.items()):
        waiting = counted(
            sum(w["horizon_days"] == days for w in facts["waiting"]),
            "snapshot waits for its",
            "snapshots wait for their",
        )
        out.say(
            f"{counted(days, 'day')}: {waiting} labels, that of "
            f"{one['snapshot'][:10]} until the log reaches {one['from'][:16]}Z"
        )
    if facts["before_src"]:
        out.say(
            f"{counted(len(facts['before_src']), 'snapshot is', 'snapshots are')} older than the "
            "log, or than a part of it that retention has shortened: name the archive"
        )
    if facts["erased"]:
        out.say(
            counted(
                facts["erased"],
                "user who was erased since is left out",
                "users who were erased since are left out",
            )
        )
    if not rows:
        out.say("no label is mature yet")


def _show_shadows(found: dict[str, Any], out: Output) -> None:
    """Each shadow against what served, over all its mature pairs."""
    if not found["comparisons"]:
        if found["pairs"]:
            waiting = counted(
                found["pairs"],
                "pair of a shadow waits for its",
                "pairs of a shadow wait for their",
            )
            out.say(f"{waiting} labels")
        return
    out.say("shadows: nGini is theirs minus the champion's, with its interval of 90 %")
    out.table(
        (
            "shadow",
            "champion",
            "days",
            "pairs",
            "users",
            "nGini",
            "low",
            "high",
            "bias",
            "champion",
        ),
        (
            (
                one["shadow"],
                one["champion"],
                one["horizon_days"],
                one["snapshots"],
                f"{one['users']:,}",
                *(measured(one[f"ngini_{name}"]) for name in ("delta", "low", "high")),
                measured(one["bias"]),
                measured(one["bias_champion"]),
            )
            for one in found["comparisons"]
        ),
    )


def _show_drift(drifted: dict[str, Any], out: Output) -> None:
    """The columns that moved most."""
    from scoring import outliers
    from scoring.retraining.drift import STABLE, band

    for line in outliers.lines(drifted["outliers"]):
        out.say(line)
    if drifted["psi"] is None:
        out.say(f"drift cannot be told: {drifted['reason']}")
        return
    then = drifted["reference"]
    out.say(
        f"{drifted['users']:,} users of {drifted['as_of'][:10]} against {then['users']:,} of "
        f"{then['as_of'][:10]}, generation {drifted['generation'][:12]}; below {STABLE} stable, "
        f"beyond {drifted['limit']:g} drifted; totals and ages are not compared, they grow anyway"
    )
    shown, limit = list(drifted["columns"].items())[:_TOP], drifted["limit"]
    out.table(
        ("column", "PSI", "", ""),
        ((name, f"{x:.3f}", band(x, limit), "! psi" if x > limit else "") for name, x in shown),
    )
    out.say("")
