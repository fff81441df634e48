"""`tune`: search the training settings on a log of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.wording import counted
from livevalue.moments import moment_ms
from livevalue.output import Json, Output
from livevalue.srcs import Anonymous, Columns, OrderLines, Src, Type, options

if TYPE_CHECKING:
    from scoring.retraining.tuning import Tried, Tuned

ORDER = 56
_SHOWN = 8  # best trials in the table
# What is searched -> heading and format, narrow: a terminal has 80 columns. Numbers that folded
# would be read as others.
_SEARCHED = {
    "width": ("width", "d"),
    "epochs": ("epochs", "d"),
    "users_per_batch": ("users", "d"),
    "rate": ("rate", ".2g"),
    "decay": ("decay", ".2g"),
    "dropout": ("drop", ".2f"),
}
_AUGMENTED = ("event_dropout", "time_jitter_days", "cutoff_dropout")  # in one column


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Models")(tune)


def tune(
    src: Src,
    trials: Annotated[
        int, typer.Option(min=1, help="Finished ones in all, pruned and earlier ones counted.")
    ] = 30,
    until: Annotated[
        str,
        typer.Option(
            metavar="T",
            help="Nothing that arrived at T or later is looked at. Else T is the log's end at the"
            " first call.",
        ),
    ] = "",
    journal: Annotated[
        Path, typer.Option(metavar="FILE", help="The same command goes on from it.")
    ] = Path("livevalue-tune.journal"),
    seed: Annotated[int, typer.Option(min=0, help="Of the search.")] = 0,
    columns: Columns = "",
    type_: Type = None,
    order_lines: OrderLines = False,
    anonymous: Anonymous = "skip",
    json: Json = None,
) -> None:
    """Search better training settings, judged on the newest mature cut-offs before T.

    Trial 0 is the settings in force, so that you see what tuning brings. Width, epochs, users of a
    batch, learning rate, decay, dropout and the augmentation (events left out, days of jitter,
    cut-offs left out) are searched, as far as the family takes them. Ctrl-C stops it; the same
    command goes on, though the log has grown. Keep what comes after T to judge the result with
    `livevalue evaluate`.

    The teachers of training.teachers speak once, before trial 0, and every trial learns from them.

    Refused, with exit code 1: a family that is no net, settings that it does not take, a journal of
    another log or search, and every log that `livevalue retrain` refuses.

    Example:  livevalue tune orders.csv --until 2011-06-01 --trials 30
    """
    from livevalue import running
    from livevalue.bars import stages
    from livevalue.jobs.tuning import tune as job
    from livevalue.rejections import lines

    out = Output(json)
    files = options(columns, type_, order_lines, anonymous)
    until_ms = moment_ms(until) if until else None
    try:
        with stages(out) as moving:

            def tell(stage: str, done: int, total: int | None) -> None:
                if stage == "trials" and not out.live:
                    out.say(f"trials: {done} of {total}")
                else:
                    moving(stage, done, total)

            tuned, left_out = job(
                running.settings(),
                src,
                files,
                journal,
                until_ms=until_ms,
                trials=trials,
                seed=seed,
                say=out.say,
                progress=tell,
            )
    except BaseException as error:
        if not _interrupted(error):
            raise
        out.say(f"stopped; the same command goes on from {journal}")
        raise KeyboardInterrupt from None
    for line in lines(left_out):
        out.say(line)
    _show(tuned, out)
    out.result({**tuned.as_json(), **left_out})


def _interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C is behind it.

    Interrupted while it writes down a trial, optuna 5 stumbles over a name that it has not set yet.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def _show(tuned: Tuned, out: Output) -> None:
    """The best trials and the one in force, what it brings, and what to paste."""
    from featurestore import times
    from scoring.training.families import takes

    pruned = sum(one.ngini is None for one in tuned.trials)
    cutoffs = ", ".join(times.text(ms)[:10] for ms in tuned.validation_ms)
    out.say(
        f"{counted(len(tuned.trials), 'trial')}, {pruned} pruned;"
        f" {counted(tuned.horizon_days, 'day')} from {cutoffs}, {counted(tuned.users, 'user')}"
    )
    complete = [one for one in tuned.trials if one.ngini is not None]
    ranked = sorted(complete, key=lambda one: (-(one.ngini or 0.0), one.number))
    shown = ranked[:_SHOWN]
    if tuned.default not in shown:
        shown.append(tuned.default)
    taken = takes(tuned.default.settings)
    searched = [name for name in _SEARCHED if name in taken]
    augmented = [name for name in _AUGMENTED if name in taken]
    headings = (*(_SEARCHED[name][0] for name in searched), *(["augment"] if augmented else []))
    out.table(
        ("trial", "nGini", *headings, "seconds"),
        (_row(one, searched, augmented) for one in shown),
    )
    out.say(
        f"trial {tuned.default.number} is the settings in force"
        + (f"; augment is {' / '.join(augmented)}" if augmented else "")
    )
    if tuned.best.number == tuned.default.number:
        out.say("nothing tried ranks better than the settings in force: keep them")
        return
    gain = tuned.gain
    if gain is not None:
        out.say(
            f"nGini {gain.delta:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
            " over the settings in force"
        )
    if gain is None:
        out.say("the settings in force do not train; what was tried best, in livevalue.toml:")
    elif tuned.better:
        out.say("chosen on these cut-offs, so expect less; to use it, in livevalue.toml:")
    else:
        out.say("within noise: keep the settings in force. What was tried best, all the same:")
    out.say(tuned.toml())


def _row(one: Tried, searched: Sequence[str], augmented: Sequence[str]) -> tuple[object, ...]:
    found = ((getattr(one.settings, name), _SEARCHED[name][1]) for name in searched)
    how = "/".join(f"{getattr(one.settings, name):.2g}" for name in augmented)
    return (
        str(one.number),
        "–" if one.ngini is None else f"{one.ngini:.4f}",
        *("–" if value is None else f"{value:{form}}" for value, form in found),
        *([how] if augmented else []),
        f"{one.seconds:.1f}",
    )
