"""What a document says of its user's rank and date: to the last of its five digits."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from featurestore import times
from featurestore.columns import NO_TIME
from featurestore.settings import FeatureSettings
from featurestore.store import Listed
from scoring.generation import prior
from scoring.scorer import Scorer
from scoring.settings import ModelSettings
from streams.standing import amiss
from tests.scoring.shoplog import DAY_MS, START_MS
from tests.scoring.test_scorer import curve

SETTINGS = ModelSettings()
SHARE = SETTINGS.republish_share


@pytest.fixture(scope="module")
def users() -> list[Listed]:
    """As a commit leaves them: five digits in the document, more in the rank and the date."""
    n = 300
    made = curve(np.random.default_rng(3), n)
    made.expected[:5] = made.expected[:5, :1]  # these never move
    as_of = START_MS + np.arange(n, dtype=np.int64) * (DAY_MS - 1)
    due = Scorer(prior(SETTINGS), SETTINGS, FeatureSettings()).due_ms(made, as_of, 2)
    found = []
    for path, at, when in zip(made.expected[:, :, 2], as_of.tolist(), due.tolist(), strict=True):
        digits = [float(f"{value:.5g}") for value in path]
        said = {
            "as_of": times.text(at),
            "headline": "d90",
            "values": {"d90": {"expected": digits[0]}},
            "silence": {"days": SETTINGS.silence_days, "expected": {"d90": digits}},
        }
        date = None if when == NO_TIME else when
        found.append(Listed(json.dumps(said).encode(), float(path[0]), date))
    return found


def test_what_a_commit_leaves_follows_from_the_document(users: list[Listed]) -> None:
    assert [list(amiss(user, SHARE)) for user in users] == [[]] * len(users)
    assert list(amiss(Listed(), SHARE)) == []
    assert sum(user.due_ms is None for user in users) >= 5


def test_a_rank_that_is_another_or_missing_is_seen(users: list[Listed]) -> None:
    for user in users:
        assert user.rank is not None
        for rank in (None, 0.0, user.rank * 1.001, float("nan")):
            assert list(amiss(replace(user, rank=rank), SHARE)) == ["rank"], (user, rank)


def test_a_date_that_the_curve_does_not_give_is_seen(users: list[Listed]) -> None:
    for user in users:
        if user.due_ms is None:
            dates: list[int | None] = [START_MS + 400 * DAY_MS * 9]
        else:
            dates = [None, user.due_ms - 400 * DAY_MS, user.due_ms + 2000 * DAY_MS]
        for due in dates:
            assert list(amiss(replace(user, due_ms=due), SHARE)) == ["due date"], (user, due)
    # An hour is seen where the curve is steep, and two days nearly everywhere.
    dated = [user for user in users if user.due_ms is not None]
    for days, least in ((1 / 24, 0.2), (2.0, 0.9)):
        late = [replace(user, due_ms=(user.due_ms or 0) + int(days * DAY_MS)) for user in dated]
        assert np.mean([bool(list(amiss(user, SHARE))) for user in late]) > least, days
    # Dates of another share are not those of this one.
    assert np.mean([bool(list(amiss(user, SHARE + 0.05))) for user in dated]) > 0.99


def test_what_nobody_s_document_says_is_seen(users: list[Listed]) -> None:
    alone = replace(users[-1], document=None)
    assert list(amiss(replace(alone, due_ms=1), SHARE)) == [
        "a rank without a document",
        "a due date without a document",
    ]
