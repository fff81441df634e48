"""Value since install, judged on users of whom it is known how they went on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from featurestore.columns import EventBatch
from featurestore.settings import FeatureSettings
from scoring.judging.anchored import SPENT, anchored
from scoring.judging.question import Question
from tests.scoring.shoplog import DAY_MS, START_MS, batches

AS_OF = START_MS + 20 * DAY_MS


def pairs(users: int = 80) -> list[tuple[int, EventBatch]]:
    """Everybody orders at once and as much again ten days later; half begin before AS_OF."""
    first = START_MS + (np.arange(users) * 40 * DAY_MS // users).astype(np.int64)
    worth = (1 + np.arange(users) % 7) * 1_000_000
    user = np.concatenate([np.arange(users), np.arange(users)])
    log = batches(
        np.append(user, users),
        np.concatenate([first, first + 10 * DAY_MS, [START_MS + 80 * DAY_MS]]),
        np.concatenate([worth, worth, [1]]),
    )
    return list(log)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    question = Question((AS_OF,), (7, 30), ("prior",), population="all")
    return anchored(pairs(), question, (0, 5, 12), FeatureSettings(), ["s0"], draws=50)


def of(rows: list[dict[str, Any]], model: str, age: int, days: int) -> dict[str, Any]:
    (found,) = [
        r for r in rows if (r["model"], r["age_days"], r["horizon_days"]) == (model, age, days)
    ]
    return found


@pytest.mark.parametrize(
    ("age", "days", "share"), [(0, 7, 1.0), (0, 30, 0.5), (5, 30, 0.5), (12, 30, 1.0)]
)
def test_what_was_spent_by_an_age_is_held_against_the_value_by_the_horizon(
    rows: list[dict[str, Any]], age: int, days: int, share: float
) -> None:
    assert of(rows, SPENT, age, days)["metrics"]["bias"] == pytest.approx(share)


def test_the_model_adds_what_is_still_to_come(rows: list[dict[str, Any]]) -> None:
    for age in (0, 5):
        said = of(rows, "prior", age, 30)["metrics"]["bias"]
        assert said > of(rows, SPENT, age, 30)["metrics"]["bias"]


def test_an_age_beyond_a_horizon_has_no_row(rows: list[dict[str, Any]]) -> None:
    assert {r["horizon_days"] for r in rows if r["age_days"] == 12} == {30}


def test_only_users_whose_moment_lies_behind_the_training_are_judged(
    rows: list[dict[str, Any]],
) -> None:
    # 80 users over 40 days, two a day: from AS_OF on 40 begin, and 10 more are five days old
    assert of(rows, SPENT, 0, 30)["users"] == pytest.approx(40, abs=1)
    assert of(rows, SPENT, 5, 30)["users"] == pytest.approx(50, abs=1)
