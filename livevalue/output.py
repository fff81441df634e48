"""What commands print: people's lines to the terminal, `--json` to a file or standard output.

With `--json -` standard output holds the JSON alone and the lines for people go to standard
error. Nothing that came from outside is read as markup.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON; - is standard output."),
]


_SAY_EVERY_S = 5.0
# Of what is piped: a line of a table stays a line, as `grep` and `read` take it.
_PIPED_WIDTH = 1_000_000


class Refused(Exception):
    """A command cannot do what was asked; the message is one line that says what to do."""


class Output:
    """Of one command."""

    def __init__(self, to: Path | None = None) -> None:
        self._to = to
        self._to_stdout = to is not None and str(to) == "-"
        if to is not None and not self._to_stdout:
            _check_writable(to)  # before the command does anything
        self.console = Console(
            stderr=self._to_stdout, highlight=False, markup=False, soft_wrap=True
        )
        if not self.console.is_terminal:
            self.console.width = _PIPED_WIDTH

    @property
    def live(self) -> bool:
        """Is somebody watching? Bars and tables that move are for a terminal only."""
        return self.console.is_terminal

    def say(self, line: str) -> None:
        """One line for people."""
        self.console.print(line)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Rows for people; numbers right, text left. Folded to the width of a terminal only."""
        listed = [list(row) for row in rows]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for i, name in enumerate(columns):
            numeric = bool(listed) and all(isinstance(row[i], int | float) for row in listed)
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in listed:
            table.add_row(*(Text(_shown(cell)) for cell in row))
        self.console.print(table)

    @contextmanager
    def counting(self, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Progress of something countable, told with what is done so far.

        A bar with rate and time left on a terminal, else a line now and then; on standard error.
        """
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        if not self.live:
            began: tuple[float, int] | None = None
            said = 0.0

            def line(done: int) -> None:
                nonlocal began, said
                now = time.monotonic()
                if began is None:
                    # What came before was getting ready: no part of the rate.
                    began, said = (now, done), now
                elif now - said >= _SAY_EVERY_S:
                    said = now
                    share = f" of {total:,}" if total else ""
                    print(
                        f"{what}: {done:,}{share}, {(done - began[1]) / (now - began[0]):,.0f}/s",
                        file=sys.stderr,
                        flush=True,
                    )

            yield line
            return
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        with bar:
            task = bar.add_task(what, total=total, rate="")
            start = time.monotonic()

            def move(done: int) -> None:
                rate = done / max(time.monotonic() - start, 1e-3)
                bar.update(task, completed=done, rate=f"{rate:,.0f}/s")

            yield move

    def result(self, value: Any) -> None:
        """The result as JSON, where it was asked for."""
        if self._to is not None:
            with _opened(self._to, "w") as file:
                file.write(json.dumps(value, ensure_ascii=False, indent=1) + "\n")

    def result_line(self, value: Any) -> None:
        """One of several results, a line each, readable at once; the file is added to."""
        if self._to is not None:
            with _opened(self._to, "a") as file:
                file.write(json.dumps(value, ensure_ascii=False) + "\n")
                file.flush()


class _Stdout:
    """Standard output as a file that stays open."""

    def __enter__(self) -> IO[str]:
        return sys.stdout

    def __exit__(self, *error: object) -> None:
        sys.stdout.flush()


def _opened(path: Path, mode: str) -> Any:
    if str(path) == "-":
        return _Stdout()
    try:
        return path.open(mode, encoding="utf-8")
    except OSError as error:
        raise _cannot(path, error) from error


def _check_writable(path: Path) -> None:
    """Refused where `path` cannot be written; what it holds stays, and no file is left behind."""
    path = path.resolve()  # what a link that leads nowhere would make is taken away, not the link
    there = path.exists()
    if there and not (path.is_file() or path.is_dir()):
        return  # a pipe: whoever reads it would take our look for the end
    try:
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise _cannot(path, error) from error


def _cannot(path: Path, error: OSError) -> Refused:
    return Refused(f"cannot write {path} ({error.strerror}): name another file")


def _shown(cell: object) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:,.2f}" if abs(cell) >= 0.005 or cell == 0 else f"{cell:.2g}"
    return str(cell)


def costs(spent: Mapping[str, Any]) -> str:
    """What a generation costs, for people.

    >>> costs({"parameters": 9e3, "carry_bytes": 256, "us_per_event": 2.1, "us_per_user": 31.2})
    '9,000 parameters, 256 bytes of carry, 2.1 µs an event, 31.2 µs a user'
    """
    counted = "–" if spent["parameters"] is None else f"{spent['parameters']:,.0f}"
    return (
        f"{counted} parameters, {spent['carry_bytes']:,} bytes of carry,"
        f" {spent['us_per_event']:g} µs an event, {spent['us_per_user']:g} µs a user"
    )


def measured(value: float | None) -> str:
    """A metric for people: rankings need three digits; amounts do not.

    >>> measured(0.68751), measured(545.2), measured(None)
    ('0.688', '545.2', '–')
    """
    if value is None:
        return "–"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
