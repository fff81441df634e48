"""One look at a log before anything is learned from it: its ends, its size, what is in it.

Takes an iterable of events. Memory does not grow with the log.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scoring.errors import TooLittleData
from scoring.training.draws import Distinct
from scoring.training.examples import Log
from scoring.training.labels import MICRO


@dataclass(frozen=True, slots=True)
class LogSummary:
    """What one reading of a log shows."""

    events: int
    users: int  # about, beyond 131,072
    start_ms: int  # first event time
    clock_ms: int  # largest log time
    orders: int = 0  # events with positive value
    refunds: int = 0
    least_micro: int = 0  # of the orders
    most_micro: int = 0


def scan(log: Log) -> LogSummary:
    """Count a log and find its ends."""
    users = Distinct()
    events = orders = refunds = clock = most = 0
    start = least = int(np.iinfo(np.int64).max)
    for _, batch in log:
        users.add(batch.users)
        events += batch.size
        if not batch.size:
            continue
        start = min(start, int(batch.events["time_ms"].min()))
        clock = max(clock, int(batch.log_ms.max()))
        value = batch.events["value_micro"]
        paid = value[value > 0]
        orders += len(paid)
        refunds += int((value < 0).sum())
        if len(paid):
            least, most = min(least, int(paid.min())), max(most, int(paid.max()))
    return LogSummary(
        events,
        users.count,
        start if events else 0,
        clock,
        orders,
        refunds,
        least if orders else 0,
        most,
    )


def check(found: LogSummary, *, flat_prices: bool) -> None:
    """TooLittleData where a log holds nothing that could be learned, however long it were."""
    if not found.events:
        raise TooLittleData(
            "the log holds no event of a known user: check SRC and --columns (user_id)"
        )
    if not found.orders and found.refunds:
        all_of_them = (
            "the only amount is a refund"
            if found.refunds == 1
            else f"all {found.refunds:,} amounts are refunds"
        )
        raise TooLittleData(
            f"{all_of_them}, there is no order: amounts above 0 are orders, so check their sign"
            " (--columns amount=…)"
        )
    if not found.orders:
        raise TooLittleData(
            "the log holds no purchase, or nothing else that is value: check --columns (amount)"
            " and the value table (LIVEVALUE_VALUE__…)"
        )
    if found.users == 1:
        raise TooLittleData(
            "the log is of one user alone, so there is nobody to compare: check --columns (user_id)"
        )
    if found.orders > 1 and found.least_micro == found.most_micro and not flat_prices:
        raise TooLittleData(
            f"all {found.orders:,} orders have the same value, {found.most_micro / MICRO:g}: check"
            " --columns (amount); if that is your price, set LIVEVALUE_RETRAIN__FLAT_PRICES=true"
        )
