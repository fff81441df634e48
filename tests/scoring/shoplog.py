"""Event logs for the tests of scoring: CDNOW's orders, and a synthetic shop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurestore.columns import EVENT, STEPS, EventBatch, Kind

DAY_MS = 86_400_000
START_MS = int(datetime(1997, 1, 1, tzinfo=UTC).timestamp() * 1000)


def batches(
    user: npt.NDArray[np.int64],
    time_ms: npt.NDArray[np.int64],
    micro: npt.NDArray[np.int64],
    *,
    log_ms: npt.NDArray[np.int64] | None = None,
    kind: npt.NDArray[np.uint8] | None = None,
    size: int = 16_384,
    prefix: str = "u",
    sources: int = 1,
) -> Iterator[tuple[int, EventBatch]]:
    """One partition's log in order of log time; every value event steps the carry."""
    log_ms = time_ms if log_ms is None else log_ms
    order = np.argsort(log_ms, kind="stable")
    events = np.zeros(len(order), EVENT)
    events["time_ms"] = time_ms
    events["record_ms"] = log_ms
    events["id_hi"] = np.arange(1, len(order) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    events["id_lo"] = np.arange(len(order))
    events["value_micro"] = micro
    events["kind"] = Kind.PURCHASE if kind is None else kind
    events["flags"] = np.where(events["kind"] == Kind.PURCHASE, STEPS, 0)
    if sources > 1:
        events["source"] = events["kind"]
    for start in range(0, len(order), size):
        at = order[start : start + size]
        names, row = np.unique(user[at], return_inverse=True)
        yield (
            0,
            EventBatch(
                [f"{prefix}{n}" for n in names.tolist()],
                row.astype(np.int32),
                events[at],
                at.astype(np.int64),
                log_ms[at],
                [],
                [f"e{i}" for i in at.tolist()],
            ),
        )


def cdnow(data_dir: Path) -> tuple[npt.NDArray[np.int64], ...]:
    """(user, time_ms, micro) of CDNOW's master file: 23,570 users, 78 weeks from 1997-01-01."""
    lines = (data_dir / "cdnow" / "CDNOW_master.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line.strip()]
    rows = [row for row in rows if row[0].isdigit()]
    days = {
        text: int(datetime.strptime(text, "%Y%m%d").replace(tzinfo=UTC).timestamp() * 1000)
        for text in {row[1] for row in rows}
    }
    user = np.array([int(row[0]) for row in rows], np.int64)
    time_ms = np.array([days[row[1]] for row in rows], np.int64)
    micro = np.array([round(float(row[3]) * 1e6) for row in rows], np.int64)
    return user, time_ms, micro


def shop(
    users: int = 600, days: int = 240, seed: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A synthetic shop: users with their own rate, order value and day of leaving, some refunds."""
    r = np.random.default_rng(seed)
    rows: list[tuple[int, int, int]] = []
    rate = r.gamma(1.0, 0.06, users) + 0.004
    size = np.exp(r.normal(3.2, 0.7, users))
    for u in range(users):
        day = r.uniform(0, days * 0.6)
        leaves = day + r.exponential(120)
        while day < min(days, leaves):
            value = round(size[u] * np.exp(r.normal(0, 0.4)), 2)
            rows.append((u, int(day * DAY_MS), round(value * 1e6)))
            if r.random() < 0.05:
                rows.append((u, int((day + 2) * DAY_MS), -round(value * 1e6)))
            day += r.exponential(1 / rate[u])
    table = np.array([row for row in rows if row[1] < days * DAY_MS], np.int64)
    return table[:, 0], START_MS + table[:, 1], table[:, 2]


def cutoff_days(days: Sequence[int]) -> npt.NDArray[np.int64]:
    """Cut-offs counted in days from the start of the test logs."""
    return np.array([START_MS + d * DAY_MS for d in days], np.int64)
