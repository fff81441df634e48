"""`evaluate --staleness` and `evaluate --anchor first_event`: asked, and shown as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featurestore.wording import counted
from livevalue.output import Output, measured

if TYPE_CHECKING:
    from livevalue.jobs.evaluating import Progress
    from livevalue.sources import FileOptions
    from scoring.judging.question import Question
    from streams.settings import Settings

Rows = Sequence[dict[str, Any]]


def asked(
    settings: Settings,
    src: Sequence[str],
    options: FileOptions,
    question: Question,
    staleness: str,
    ages_days: Sequence[int],
    progress: Progress,
) -> dict[str, Any]:
    """The JSON of the command: rows of `staleness`, of `lifetime` where there are ages, notes."""
    from livevalue.jobs import freshness
    from scoring.judging.staleness import parse_staleness

    report: dict[str, Any] = {"runs": [], "comparisons": [], "notes": []}
    stales = parse_staleness(staleness)
    question, notes = freshness.asked(settings, question)
    log, left_out = freshness.read(settings, src, options, progress)
    report["notes"] = [*left_out, *notes]
    if stales:
        report["staleness"] = freshness.fresh_and_stale(log, settings, question, stales, progress)
    if ages_days:
        report["lifetime"] = freshness.since_first_event(
            log, settings, question, ages_days, progress
        )
    return report


def show(report: dict[str, Any], out: Output) -> None:
    """As tables."""
    if "staleness" in report:
        show_staleness(report["staleness"], out)
    if "lifetime" in report:
        show_lifetime(report["lifetime"], out)
    for note in report["notes"]:
        out.say(f"note: {note}")


def show_staleness(rows: Rows, out: Output) -> None:
    """Everybody first, then by age for the staleness that most batch jobs have."""
    for kind in dict.fromkeys(row["rows"] for row in rows):
        for days in dict.fromkeys(row["horizon_days"] for row in rows):
            here = [r for r in rows if (r["rows"], r["horizon_days"]) == (kind, days)]
            whole = [r for r in here if r["who"] in ("all", "seen")]
            named = dict.fromkeys((r["against"], r["stale"]) for r in whole)
            # the last of them that is behind by a day, or else by anything
            typical = next(
                (n for n in named if n[1] == "1d"), next((n for n in named if n[1] != "0s"), None)
            )
            by_age = [
                r
                for r in here
                if r["who"] not in ("all", "seen") and (r["against"], r["stale"]) == typical
            ]
            if whole:
                out.say(f"{kind} rows, {counted(days, 'day')} ahead")
                out.table(
                    ("who", "against", "stale", "rows", "unseen", "fresh", "stale", "fresh - stale",
                     "95 % interval"),
                    (_line(row) for row in [*whole, *by_age]),
                )  # fmt: skip
                out.say("")
    if rows:
        out.say("figures are nGini; --json holds MAE, bias and the other metrics of every row")


def _line(row: dict[str, Any]) -> tuple[object, ...]:
    found = row["differences"]["ngini"]
    return (
        row["who"],
        row["against"],
        row["stale"],
        f"{row['n']:,}",
        f"{row['unseen']:,}",
        measured(row["fresh_metrics"]["ngini"]),
        measured(row["stale_metrics"]["ngini"]),
        measured(found["delta"]),
        f"{measured(found['low'])} to {measured(found['high'])}",
    )


def show_lifetime(rows: Rows, out: Output) -> None:
    """By age and horizon, the model above what was spent so far."""
    out.table(
        ("age", "by day", "model", "users", "nGini", "rank", "MAE", "bias", "nGini beyond spent"),
        (
            (
                f"{row['age_days']:g} d",
                row["horizon_days"],
                row["model"],
                f"{row['users']:,}",
                *(measured(row["metrics"][m]) for m in ("ngini", "spearman", "mae", "bias")),
                _interval(row["ngini_beyond_spent"]),
            )
            for row in rows
        ),
    )


def _interval(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{measured(found['delta'])} ({measured(found['low'])} to {measured(found['high'])})"
