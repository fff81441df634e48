"""What a person sees of the demo: the users whose value moves, and why.

On a terminal one live table; otherwise a plain line every few seconds, so that a log of the demo
reads well too. Money is shown in the deployment's unit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

_ROWS = 12
_JOIN_IN = "Join in from a second terminal:"


@dataclass(frozen=True, slots=True)
class Move:
    """One user's value after an update."""

    user_id: str
    value: float
    change: float | None  # None where there was no value before
    why: str
    p_active: float
    orders: int
    as_of: str


def move_of(document: dict[str, Any], amount: str | None) -> Move:
    """Read an update of the `scores` topic as one line of the table."""
    headline = document["headline"]
    now = document["values"][headline]
    before = document["previous"]
    cause = document["cause"]["type"]
    why = {
        "silence": "silence: time passed without an order",
        "generation": "a new generation rescored everyone",
        "recover": "published again after a roll-back",
    }.get(cause, cause)
    if cause == "purchase" and amount is not None:
        why = f"refund of {amount.lstrip('-')}" if amount.startswith("-") else f"order of {amount}"
    return Move(
        document["user_id"],
        now["expected"],
        now["expected"] - before[headline] if before else None,
        why,
        now["p_active"],
        document["history"]["orders"],
        document["as_of"],
    )


class Screen:
    """Shows the latest moves; `with Screen(...) as screen: screen.show(...)`."""

    def __init__(self, console: Console, unit: str, join_in: Sequence[str]) -> None:
        self._console = console
        self._unit = unit
        self._join_in = join_in
        self._moves: OrderedDict[str, Move] = OrderedDict()
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._last_plain = 0.0

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        else:
            self._console.print("\n  ".join([_JOIN_IN, *self._join_in]), highlight=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def add(self, move: Move) -> None:
        """Remember a move; a user's newest replaces the older one."""
        self._moves.pop(move.user_id, None)
        self._moves[move.user_id] = move
        while len(self._moves) > 400:
            self._moves.popitem(last=False)

    def say(self, line: str) -> None:
        """A line that stays."""
        (self._live.console if self._live else self._console).print(line, highlight=False)

    def show(self, clock_ms: int, counts: str, now: float) -> None:
        """Draw the state of things; on plain output at most every two seconds."""
        moved = sorted(
            list(self._moves.values())[-60:], key=lambda m: abs(m.change or 0), reverse=True
        )[:_ROWS]
        day = datetime.fromtimestamp(clock_ms / 1000, UTC).strftime("%a %d %b %Y")
        if self._live:
            self._live.update(self._table(moved, day, counts))
        elif now - self._last_plain >= 2.0:
            self._last_plain = now
            top = moved[0] if moved else None
            line = f"{day}  {counts}"
            if top:
                line += f"  user {top.user_id}: {self._money(top.value)} {self._change(top)}"
                line += f" ({top.why})"
            self._console.print(line, highlight=False)

    def _table(self, moves: Sequence[Move], day: str, counts: str) -> Group:
        title = f"{day}   ·   value over the next 90 days"
        table = Table(title=title, caption=counts, expand=True)
        for name, justify in (
            ("user", "right"), ("value", "right"), ("change", "right"),
            ("active", "right"), ("orders", "right"), ("why", "left"),
        ):  # fmt: skip
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for move in moves:
            up = (move.change or 0) >= 0
            table.add_row(
                move.user_id,
                self._money(move.value),
                Text(self._change(move), style="green" if up else "red"),
                f"{move.p_active:.0%}",
                str(move.orders),
                move.why,
            )
        hints = [Text(_JOIN_IN, style="bold")]
        hints += [Text("  " + line, style="cyan") for line in self._join_in]
        return Group(table, *hints)

    def _money(self, value: float) -> str:
        return f"{value:,.2f} {self._unit}"

    @staticmethod
    def _change(move: Move) -> str:
        if move.change is None:
            return "new"
        return f"{move.change:+,.2f}"
