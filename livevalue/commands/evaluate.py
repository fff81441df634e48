"""`evaluate`: how good the values would have been, on a log of one's own."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from featurestore.wording import counted
from livevalue.moments import moment_ms
from livevalue.output import Json, Output, costs, measured
from livevalue.srcs import Columns, OrderLines, Type

if TYPE_CHECKING:
    from scoring.judging.evaluation import Report

ORDER = 55
# metric -> heading, narrow enough for 80 columns
_SHOWN = {
    "ngini": "nGini",
    "spearman": "rank",
    "top20": "top20",
    "dmape": "dMAPE",
    "bias": "bias",
    "mae": "MAE",
    "auc": "AUC",
    "brier": "Brier",
    "cover80": "cover80",
}
_DAY_MS = 86_400_000


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Models")(evaluate)


def evaluate(
    src: Annotated[
        list[str] | None,
        typer.Argument(metavar="SRC", help="kafka, files, or a folder of `livevalue archive`."),
    ] = None,
    as_of: Annotated[
        str, typer.Option(metavar="T[,T…]", help="Cut-offs, needed: dates or RFC 3339.")
    ] = "",
    horizon: Annotated[
        str, typer.Option(metavar="DAYS[,…]", help="What is predicted: 28d, 13w.")
    ] = "90d",
    label_horizon: Annotated[
        str,
        typer.Option(metavar="DAYS", help="Hold each --horizon against so many days from T: 273d."),
    ] = "",
    models: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="Models, the first against each other; or `list`. Else `served`, baselines.",
        ),
    ] = "",
    train_cutoffs: Annotated[
        str, typer.Option(metavar="FIRST..LAST/STEP", help="For training; chosen if not given.")
    ] = "",
    net_by: Annotated[
        Literal["user-day", "order", "event"],
        typer.Option(help="What is one order: all of a user's day, an order_id, an event."),
    ] = "user-day",
    population: Annotated[
        Literal["buyers", "prospects", "all"],
        typer.Option(help="Who is scored: with an order before the cut-off, without, both."),
    ] = "buyers",
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="AMOUNT",
            help="Find users who will be worth so much, by yes or no; else those who will order.",
        ),
    ] = None,
    target_share: Annotated[
        float, typer.Option(min=0.001, max=0.999, help="Of users that would be targeted.")
    ] = 0.2,
    seeds: Annotated[int, typer.Option(min=1, help="Nets trained, each judged.")] = 1,
    staleness: Annotated[
        str,
        typer.Option(
            metavar="SPAN[,…]",
            help="Instead: fresh against stale by so much, after T: 0s,1h,1d,7d,1d+silence.",
        ),
    ] = "",
    anchor: Annotated[
        Literal["first_event"] | None,
        typer.Option(help="Instead: users at --ages, against what they were worth by --horizon."),
    ] = None,
    ages: Annotated[
        str, typer.Option(metavar="DAYS[,…]", help="With --anchor: days since the first event.")
    ] = "0d,1d,7d,20d",
    columns: Columns = "",
    type_: Type = None,
    order_lines: OrderLines = False,
    json: Json = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a report for people: one file, needs no network."),
    ] = None,
) -> None:
    """Judge values on history, as they would have been used.

    Nothing after a cut-off is seen; every user of the population is scored, and held against what
    they went on to spend. docs/evaluation.md says what each figure means.

    Example:  livevalue evaluate orders.csv --type purchase --columns user_id=customer,amount=total
    --as-of 2011-09-10 --horizon 90d --html report.html

    Example, what real time is worth (docs/realtime.md):  livevalue evaluate kafka --horizon 7d,30d
    --as-of 2011-06-01 --staleness 0s,1h,1d,7d,1d+silence

    Example, five rolling months pooled:  livevalue evaluate kafka --horizon 30d
    --as-of 2011-07-12,2011-08-11,2011-09-10,2011-10-10,2011-11-09 --models served,pareto_gg
    """
    from livevalue import freshness, running
    from livevalue.bars import stages
    from livevalue.jobs import evaluating
    from livevalue.sources import FileOptions, parse_columns
    from scoring.judging.evaluation import DEFAULT, Question, model_names
    from scoring.judging.thresholds import Task

    out = Output(json)
    if models == "list":
        out.table(("model", "what it is"), model_names().items())
        out.result(model_names())
        return
    if not src or not as_of:
        raise typer.BadParameter("SRC and --as-of are needed, as in the example of --help")
    moments = tuple(dict.fromkeys(moment_ms(text) for text in as_of.split(",") if text))
    horizons = tuple(dict.fromkeys(parse_days(text) for text in horizon.split(",") if text))
    if not moments or not horizons:
        raise typer.BadParameter("--as-of and --horizon need one moment and one span at least")
    if threshold is not None and not 0 < threshold < math.inf:
        raise typer.BadParameter(f"--threshold {threshold:g} tells nobody apart: give one above 0")
    if staleness or anchor:
        given = {
            "--label-horizon": bool(label_horizon),
            "--threshold": threshold is not None,
            "--seeds": seeds > 1,
        }
        for name in (name for name, there in given.items() if there):
            raise typer.BadParameter(f"{name} goes with neither --staleness nor --anchor")
    if html is not None and (staleness or anchor):
        raise typer.BadParameter(
            "--html goes with neither --staleness nor --anchor: ask for those with --json FILE, "
            "and for the report by a call of its own"
        )
    named = (name.strip().replace("-", "_") for name in models.split(","))
    question = Question(
        as_of_ms=moments,
        horizons_days=horizons,
        models=tuple(dict.fromkeys(name for name in named if name)) or DEFAULT,
        cutoffs_ms=parse_cutoffs(train_cutoffs) if train_cutoffs else None,
        label_days=parse_days(label_horizon) if label_horizon else None,
        net_by=net_by,
        population=population,
        task=Task(threshold),
        target_share=target_share,
        seeds=seeds,
    )
    # one order is one event once its lines are added up
    options = FileOptions(parse_columns(columns), type_, order_lines or net_by == "order")
    settings = running.settings()
    if html is not None:
        from livevalue.report.page import writable

        writable(html)  # before the work, which may take long
    with stages(out) as moving:
        last = ""

        def tell(stage: str, done: int, total: int | None) -> None:
            nonlocal last
            model, _, _epoch = stage.partition(":  ")
            if out.live or total is None:
                moving(stage, done, total)
            elif model != last:
                last = model
                out.say(model)  # a line a model, for logs

        if staleness or anchor:
            special = freshness.asked(
                settings,
                src,
                options,
                question,
                staleness,
                parse_ages(ages) if anchor else (),
                tell,
            )
        else:
            report = evaluating.evaluate(settings, src, options, question, tell)
    if staleness or anchor:
        freshness.show(special, out)
        out.result(special)
        return
    if html is not None:
        from livevalue.report.page import write

        write(html, report, question, src, settings.value.currency)
    _show(report, out)
    if html is not None:
        out.say(f"report: {html}")
    out.result(report.as_json())


def _show(report: Report, out: Output) -> None:
    """What each model reached at each cut-off, then how the first one compares."""
    asked = dict.fromkeys((row["as_of"], row["horizon_days"]) for row in report.runs)
    for as_of, days in asked:
        rows = [r for r in report.runs if (r["as_of"], r["horizon_days"]) == (as_of, days)]
        out.say(f"{counted(days, 'day')} from {as_of}, {rows[0]['users']:,} users")
        out.table(
            ("model", *_SHOWN.values()),
            (
                (
                    f"{row['model']} #{row['seed']}" if row["seed"] else row["model"],
                    *(measured(row["metrics"][name]) for name in _SHOWN),
                )
                for row in rows
            ),
        )
        out.say("")
    for days in dict.fromkeys(row["horizon_days"] for row in report.pooled):
        rows = [row for row in report.pooled if row["horizon_days"] == days]
        if rows[0]["cutoffs"] > 1:
            out.say(f"{counted(days, 'day')}, mean of {rows[0]['cutoffs']} cut-offs")
            out.table(
                ("model", *_SHOWN.values()),
                (
                    (row["model"], *(measured(row["metrics"][name]) for name in _SHOWN))
                    for row in rows
                ),
            )
            out.say("")
    spent = {row["model"]: row for row in report.runs if row["cost"]}
    if spent:
        out.table(
            ("model", "cost", "trained in"),
            ((name, costs(row["cost"]), f"{row['seconds']:.0f} s") for name, row in spent.items()),
        )
        out.say("")
    pooled = [row for row in report.comparisons if row["as_of"] == "pooled"]
    if report.comparisons:
        out.table(
            ("a", "b", "as of", "days", "metric", "a - b", "95 % interval"),
            (
                (
                    row["a"],
                    row["b"],
                    row["as_of"][:10],
                    row["horizon_days"],
                    row["metric"],
                    measured(row["delta"]),
                    f"{measured(row['low'])} to {measured(row['high'])}",
                )
                for row in pooled or report.comparisons
            ),
        )
    for note in report.notes:
        out.say(f"note: {note}")


def parse_days(text: str) -> int:
    """`28d` or `13w` as days.

    >>> parse_days("28d"), parse_days("13w")
    (28, 91)
    """
    found = re.fullmatch(r"(\d{1,5})([dw])", text.strip())
    if not found or not int(found[1]):
        raise typer.BadParameter(f"{text!r} is no span of days: write 28d or 13w")
    return int(found[1]) * (7 if found[2] == "w" else 1)


def parse_ages(text: str) -> tuple[int, ...]:
    """`0d,1d,7d` as days.

    >>> parse_ages("0d,7d")
    (0, 7)
    """
    found = [re.fullmatch(r"(\d{1,4})d", part.strip()) for part in text.split(",") if part.strip()]
    if not found or not all(found):
        raise typer.BadParameter(f"{text!r} are no ages: write 0d,1d,7d,20d")
    return tuple(int(age[1]) for age in found if age)


def parse_cutoffs(text: str) -> tuple[int, ...]:
    """FIRST..LAST/STEP as milliseconds, both ends in.

    >>> [t // 86_400_000 for t in parse_cutoffs("1970-01-01..1970-01-15/7d")]
    [0, 7, 14]
    """
    found = re.fullmatch(r"(.+?)\.\.(.+?)/(\w+)", text.strip())
    if not found:
        raise typer.BadParameter(
            f"{text!r} is no range: write FIRST..LAST/STEP, as 1997-04-02..1997-07-02/13d"
        )
    first, last, step = moment_ms(found[1]), moment_ms(found[2]), parse_days(found[3])
    if last < first:
        raise typer.BadParameter(f"{text!r} ends before it begins")
    return tuple(range(first, last + 1, step * _DAY_MS))
