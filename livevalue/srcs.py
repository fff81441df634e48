"""SRC and the options of files, as every command that reads a log takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from livevalue.sources import FileOptions

Src = Annotated[
    list[str],
    typer.Argument(metavar="SRC", help="kafka, files, or a folder of `livevalue archive`."),
]
Columns = Annotated[
    str, typer.Option(metavar="A=B,…", help="Columns by other names: user_id=CustomerID,amount=Sum")
]
Type = Annotated[
    Literal["browse", "purchase", "interaction"] | None,
    typer.Option("--type", help="Type of every event of the files."),
]
OrderLines = Annotated[
    bool, typer.Option("--order-lines", help="Add up the lines of one order_id of one user.")
]
Anonymous = Annotated[Literal["skip", "reject"], typer.Option(help="Rows of files without a user.")]


def options(columns: str, type_: str | None, order_lines: bool, anonymous: str) -> FileOptions:
    """The options as Source takes them."""
    from livevalue.sources import FileOptions, parse_columns

    return FileOptions(parse_columns(columns), type_, order_lines, anonymous)
