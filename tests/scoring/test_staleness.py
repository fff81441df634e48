"""Fresh against stale: that the measure finds worth where there is some, and none where not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from featurestore.columns import EventBatch
from featurestore.settings import FeatureSettings
from scoring.judging.question import BadQuestion, Question
from scoring.judging.staleness import Size, parse_staleness, staleness
from tests.scoring.shoplog import DAY_MS, START_MS, batches

Log = list[tuple[int, EventBatch]]
HOUR = 3_600_000
AS_OF = START_MS + 30 * DAY_MS
ALL = "0s,1h,1d,7d,1d+silence"


def bursts(users: int = 150, days: int = 60) -> Log:
    """Whoever buys buys again the next days, then is silent for long: only news tells."""
    r = np.random.default_rng(0)
    rows = []
    for u in range(users):
        day = r.uniform(0, 40)
        while day < days:
            rows += [(u, day + d + r.uniform(0, 0.3)) for d in range(4)]
            day += 4 + r.exponential(25)
    table = np.array([row for row in rows if row[1] < days])
    micro = np.full(len(table), 10_000_000)
    time_ms = START_MS + (table[:, 1] * DAY_MS).astype(np.int64)
    return list(batches(table[:, 0].astype(np.int64), time_ms, micro, size=300))


def ask(log: Log, text: str, **said: Any) -> list[dict[str, Any]]:
    question = Question((AS_OF,), (2, 7), ("prior",), population=said.pop("population", "all"))
    size = Size(instants=4, rows=1500, draws=60)
    return staleness(log, question, parse_staleness(text), FeatureSettings(), ["s0"], size=size)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return ask(bursts(), ALL)


def only(among: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (found,) = [row for row in among if all(row[key] == value for key, value in wanted.items())]
    return found


def test_news_that_tells_the_next_days_is_found_to_be_worth_something(
    rows: list[dict[str, Any]],
) -> None:
    row = only(rows, rows="calendar", horizon_days=2, who="all", stale="7d")
    assert row["differences"]["ngini"]["low"] > 0.02
    fresh, stale = row["fresh_metrics"]["ngini"], row["stale_metrics"]["ngini"]
    assert row["differences"]["ngini"]["delta"] == pytest.approx(fresh - stale, abs=1e-9)


def test_nothing_is_worth_nothing(rows: list[dict[str, Any]]) -> None:
    same = [row for row in rows if row["stale"] == "0s"]
    assert len(same) >= 8
    for row in same:
        assert row["differences"]["ngini"] == {"delta": 0.0, "low": 0.0, "high": 0.0}
        assert row["fresh_metrics"] == row["stale_metrics"]
        assert row["unseen"] == 0


def test_users_whom_the_stale_score_never_saw_are_counted_and_left_out_of_seen(
    rows: list[dict[str, Any]],
) -> None:
    for stale in ("1h", "1d", "7d"):
        everybody = only(rows, rows="event", horizon_days=7, who="all", stale=stale)
        seen = only(rows, rows="event", horizon_days=7, who="seen", stale=stale)
        assert everybody["unseen"] > 0
        assert seen["unseen"] == 0
        assert seen["n"] == everybody["n"] - everybody["unseen"]


def test_a_document_moved_by_its_curve_says_what_is_said_anew_while_nothing_happens() -> None:
    early = [(0, batch.before(AS_OF - DAY_MS)) for _, batch in bursts()]
    n = 150
    back = START_MS + 57 * DAY_MS + np.arange(n) * HOUR // 3
    log = early + list(batches(np.arange(n), back, np.full(n, 10_000_000)))
    for _, batch in early:
        batch.log_ms = batch.events["time_ms"].copy()
    found = ask(log, "20d,20d+silence")

    def bias(which: str, stale: str) -> float:
        row = only(found, rows="calendar", horizon_days=7, who="seen", stale=stale)
        return float(row[which]["bias"])

    fresh = bias("fresh_metrics", "20d")
    assert bias("stale_metrics", "20d") > 1.08 * fresh
    assert bias("stale_metrics", "20d+silence") == pytest.approx(fresh, rel=0.03)


def test_no_score_is_credited_with_the_money_of_its_own_event() -> None:
    """One order each: just after it there is nothing left to come."""
    n = 60
    time_ms = AS_OF + (np.arange(n) * (20 * DAY_MS // n)).astype(np.int64)
    quiet = np.array([AS_OF - DAY_MS, AS_OF + 29 * DAY_MS])  # the log's ends
    log = list(
        batches(
            np.concatenate([np.arange(n), [n, n]]),
            np.concatenate([time_ms, quiet]),
            np.full(n + 2, 5_000_000),
        )
    )
    assert [row for row in ask(log, "0s,1d") if row["rows"] == "event"] == []


def test_buyers_are_those_with_an_order_by_then(rows: list[dict[str, Any]]) -> None:
    buyers = ask(bursts(), "1d", population="buyers")
    row = only(buyers, rows="event", horizon_days=7, who="all", stale="1d")
    # every event here is an order, so after it everybody is a buyer
    assert row["n"] == only(rows, rows="event", horizon_days=7, who="all", stale="1d")["n"]


@pytest.mark.parametrize("text", ["1w", "1d+noise", "d", "-1d"])
def test_what_is_no_span_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadQuestion, match="1d\\+silence"):
        parse_staleness(text)


def test_baselines_cannot_be_asked_at_any_instant() -> None:
    question = Question((AS_OF,), (7,), ("pareto_gg",))
    with pytest.raises(BadQuestion, match="served"):
        staleness(bursts(20), question, parse_staleness("1d"), FeatureSettings(), ["s0"])
