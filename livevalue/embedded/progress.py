"""How fetching looks: a bar on a terminal, a line at each fifth elsewhere.

Standard error, so that a command's own output stays clean.
"""

from __future__ import annotations

import sys

from livevalue.embedded.jars import Progress


def shown() -> Progress:
    """The one that fits where standard error goes."""
    return bar() if sys.stderr.isatty() else lines()


def lines() -> Progress:
    """Plain text, few lines.

    >>> import contextlib, io
    >>> with contextlib.redirect_stderr(io.StringIO()) as out:
    ...     tell = lines()
    ...     for done in (0, 1, 3, 10):
    ...         tell("fetching", done, 10)
    >>> print(out.getvalue(), end="")
    fetching: 0 %
    fetching: 20 %
    fetching: 100 %
    """
    said: dict[str, int] = {}

    def tell(what: str, done: int, of: int) -> None:
        fifth = 5 * done // max(of, 1)
        if said.get(what) != fifth:
            said[what] = fifth
            print(f"{what}: {fifth * 20} %", file=sys.stderr, flush=True)

    return tell


def bar() -> Progress:
    """A rich bar with rate and time left; it goes away when it is full."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def tell(what: str, done: int, of: int) -> None:
        if what not in tasks:
            bars.start()
            tasks[what] = bars.add_task(what, total=of)
        bars.update(tasks[what], completed=done)
        if done >= of:
            bars.stop()
            bars.remove_task(tasks.pop(what))

    return tell
