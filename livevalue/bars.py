"""Progress of long work: a bar with rate and time left on a terminal, plain lines otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from livevalue.output import Output

_PLAIN_S = 5.0  # between two lines where nobody watches

Tell = Callable[[int, int | None], None]  # done, in all where known


class _Rate(ProgressColumn):
    """Things a second."""

    def render(self, task: Task) -> Text:
        """Empty until it is known."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "")


@contextmanager
def bar(out: Output, what: str) -> Iterator[Tell]:
    """A bar for one piece of work; `tell(done, total)` moves it, as often as one likes."""
    if not out.live:
        yield _lines(out, what)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out.console, transient=True) as progress:
        task = progress.add_task(what, total=None)

        def tell(done: int, total: int | None = None) -> None:
            progress.update(task, completed=done, total=total)

        yield tell


@contextmanager
def stages(out: Output) -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar that is named by the stage of the work: `tell(stage, done, total)`."""
    if not out.live:
        plain: dict[str, Tell] = {}

        def say(stage: str, done: int, total: int | None = None) -> None:
            plain.setdefault(stage, _lines(out, stage))(done, total)

        yield say
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out.console, transient=True) as progress:
        task = progress.add_task("", total=None)

        def tell(stage: str, done: int, total: int | None = None) -> None:
            progress.update(task, description=stage, completed=done, total=total)

        yield tell


def _lines(out: Output, what: str) -> Tell:
    """A line now and then, for logs; none in the first seconds of what is counted."""
    began: tuple[float, int] | None = None  # when the first word came, and what was done by then
    last = 0.0

    def tell(done: int, total: int | None = None) -> None:
        nonlocal began, last
        now = time.monotonic()
        if began is None:
            # What came before was getting ready: no part of the rate.
            began, last = (now, done), now
        if now - last < _PLAIN_S:
            return
        last = now
        of = f" of {total:,}" if total else ""
        out.say(f"{what}: {done:,}{of}, {(done - began[1]) / (now - began[0]):,.0f}/s")

    return tell
