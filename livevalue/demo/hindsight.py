"""At the end of the demo: did the values know better than past spend who was worth attention?

In the middle of the demo two lists of 20 users are written down: the highest values, and the
highest past spend. When the log has ended, both are held against what those users really spent
afterwards. Nothing is tuned on this; it is shown as it comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from rich.table import Table

from featurestore.wording import counted
from livevalue.demo.orders import DAY_MS, Orders

TOP = 20


@dataclass(frozen=True, slots=True)
class Lists:
    """Both lists as they stood at `at_ms`."""

    at_ms: int
    by_value: Sequence[str]
    by_spend: Sequence[str]


@dataclass(frozen=True, slots=True)
class Hindsight:
    """What the users of the lists spent in the `days` after."""

    days: float
    by_value: Decimal
    by_spend: Decimal
    best: Decimal  # of the 20 that really spent most
    shared: int  # users on both lists

    def as_json(self) -> dict[str, float | int]:
        """For `--json`."""
        return {
            "days": round(self.days, 1),
            "top_by_value": float(self.by_value),
            "top_by_past_spend": float(self.by_spend),
            "best_possible": float(self.best),
            "on_both": self.shared,
        }

    def table(self) -> Table:
        """For the terminal."""
        days = counted(round(self.days), "day")
        table = Table(title=f"What each top {TOP} spent in the {days} that followed")
        table.add_column("picked by")
        table.add_column("spent, GBP", justify="right")
        table.add_column("of the best possible", justify="right")
        for name, spent in (
            ("value over the next 90 days", self.by_value),
            ("past spend", self.by_spend),
            ("hindsight", self.best),
        ):
            share = spent / self.best if self.best else Decimal(0)
            table.add_row(name, f"{spent:,.2f}", f"{share:.0%}")
        table.caption = f"{counted(self.shared, 'user is', 'users are')} on both lists"
        return table


def past_spenders(orders: Orders, at_ms: int) -> list[str]:
    """The users who had spent most before `at_ms`."""
    spent = orders.spent(orders.times_ms[0], at_ms)
    return sorted(spent, key=lambda user: spent[user], reverse=True)[:TOP]


def look_back(orders: Orders, lists: Lists, end_ms: int) -> Hindsight:
    """Hold the lists against the log up to `end_ms`."""
    after = orders.spent(lists.at_ms, end_ms)

    def total(users: Sequence[str]) -> Decimal:
        return sum((after.get(user, Decimal(0)) for user in users), Decimal(0))

    known = {orders.user_ids[row] for row in orders.between(orders.times_ms[0], lists.at_ms)}
    best = sorted((u for u in after if u in known), key=lambda u: after[u], reverse=True)[:TOP]
    return Hindsight(
        (end_ms - lists.at_ms) / DAY_MS,
        total(lists.by_value),
        total(lists.by_spend),
        total(best),
        len(set(lists.by_value) & set(lists.by_spend)),
    )
