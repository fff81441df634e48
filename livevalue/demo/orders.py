"""The orders that the demo plays: Online Retail, and sessions simulated from the past alone.

Data: UCI Machine Learning Repository, data set 352, Daqing Chen, CC BY 4.0; see data/README.md.
Times are milliseconds, UTC; amounts are decimal strings in GBP.
"""

from __future__ import annotations

import json
import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import as_file, files
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Played:
    """One event as it is sent."""

    topic_type: str  # browse | purchase | interaction
    user_id: str
    time_ms: int
    body: bytes
    amount: Decimal  # 0 where it is no order


@dataclass(frozen=True, slots=True)
class Orders:
    """The whole log, in time order."""

    user_ids: list[str]
    times_ms: list[int]
    amounts: list[Decimal]
    event_ids: list[str]
    anonymous: int  # lines of the original log that carry no customer

    def between(self, start_ms: int, end_ms: int) -> range:
        """Rows with start <= time < end."""
        return range(bisect_left(self.times_ms, start_ms), bisect_left(self.times_ms, end_ms))

    def spent(self, start_ms: int, end_ms: int) -> dict[str, Decimal]:
        """Net spend by user in [start, end)."""
        total: dict[str, Decimal] = {}
        for row in self.between(start_ms, end_ms):
            user = self.user_ids[row]
            total[user] = total.get(user, Decimal(0)) + self.amounts[row]
        return total

    def event(self, row: int) -> Played:
        """One row as the event that is sent."""
        body = {
            "type": "purchase",
            "event_id": self.event_ids[row],
            "user_id": self.user_ids[row],
            "event_time": self.times_ms[row],
            "amount": str(self.amounts[row]),
            "currency": "GBP",
            "order_id": self.event_ids[row],
        }
        return Played(
            "purchase",
            self.user_ids[row],
            self.times_ms[row],
            json.dumps(body).encode(),
            self.amounts[row],
        )


def load_orders() -> Orders:
    """Read the orders that ship with the package."""
    with as_file(files("livevalue") / "data" / "online_retail.parquet") as path:
        table = pq.read_table(path)
    metadata = table.schema.metadata or {}
    return Orders(
        table["user_id"].to_pylist(),
        [t * 1 for t in pc.cast(table["event_time"], pa.int64()).to_pylist()],
        table["amount"].to_pylist(),
        table["event_id"].to_pylist(),
        int(metadata.get(b"lines_without_customer", b"0")),
    )


def write_history(path: Path, before_ms: int) -> int:
    """The orders before `before_ms` as a Parquet event log of its own; returns how many."""
    with as_file(files("livevalue") / "data" / "online_retail.parquet") as source:
        table = pq.read_table(source)
    kept = table.filter(pc.less(pc.cast(table["event_time"], pa.int64()), before_ms))
    pq.write_table(kept, path, compression="zstd")
    return int(kept.num_rows)


def simulate(
    past: Sequence[tuple[str, int]], start_ms: int, end_ms: int, seed: int
) -> list[Played]:
    """Sessions of users who ordered before, in [start, end); labelled as simulated.

    past: (user, time) of orders before `start_ms`. Whoever ordered lately browses more; nothing
    after `start_ms` is looked at, so the sessions know no more than the past does.
    """
    rng = random.Random(f"{seed}-{start_ms}")
    recent = [user for user, time in past if time >= start_ms - 30 * DAY_MS]
    if not recent:
        return []
    days = (end_ms - start_ms) / DAY_MS
    sessions = int(days * len(set(recent)) * 0.1 + rng.random())
    sent = [event for _ in range(sessions) for event in _session(rng, recent, start_ms, end_ms)]
    return sorted(sent, key=lambda event: event.time_ms)


def _session(
    rng: random.Random, recent: Sequence[str], start_ms: int, end_ms: int
) -> Iterator[Played]:
    user, time = rng.choice(recent), rng.randrange(start_ms, end_ms)
    for step in range(rng.randrange(1, 6)):
        cart = step > 1 and rng.random() < 0.2
        body = {
            "type": "interaction" if cart else "browse",
            "event_id": f"simulated-{rng.getrandbits(64):016x}",
            "user_id": user,
            "event_time": min(time, end_ms - 1),
            "properties": {"simulated": True},
            **({"action": "cart_add"} if cart else {"page": "product"}),
        }
        yield Played(
            str(body["type"]), user, min(time, end_ms - 1), json.dumps(body).encode(), Decimal(0)
        )
        time += rng.randrange(5_000, 120_000)
