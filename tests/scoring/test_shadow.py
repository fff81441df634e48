"""Champion and shadow are judged by the same labels, and neither by what it had seen."""

from __future__ import annotations

import numpy as np

from featurestore.columns import EVENT, Erase, EventBatch, Kind
from featurestore.fold_settings import FoldSettings
from featurestore.settings import FeatureSettings
from scoring.judging.metrics import Values
from scoring.retraining.audit import Predicted, Served, Thresholds, Truth
from scoring.retraining.shadow import Judged, Pair, compare, whole

DAY = 86_400_000
USERS = ["ada", "bob", "cyd", "dan"]


def served(name: str, expected: Values, as_of_ms: int = 0, at_ms: int = 0) -> Served:
    n = len(USERS)
    said = Predicted(expected, np.full(n, 0.5), np.full(n, 1.0), np.full(n, 100.0))
    return Served(
        snapshot_ms=at_ms,
        users=list(USERS),
        as_of_ms=np.full(n, as_of_ms),
        spent=np.zeros(n),
        generation=np.array([name] * n, object),
        evidence=np.array(["thin"] * n, object),
        horizons={7: said},
    )


def truth(value: dict[str, tuple[int, float]], erased: str = "") -> Truth:
    """user -> (time of an order, its value); the log goes on for twenty days."""
    users = [*value, "end"]
    events = np.zeros(len(users), EVENT)
    events["time_ms"] = [*(at for at, _ in value.values()), 20 * DAY]
    events["record_ms"] = events["time_ms"]
    events["value_micro"] = [*(int(worth * 1e6) for _, worth in value.values()), 1]
    events["kind"] = Kind.PURCHASE
    rows = np.arange(len(users), dtype=np.int32)
    erases = [Erase(users.index(erased), 0, 15 * DAY)] if erased else []
    at = events["time_ms"].copy()
    batch = EventBatch(users, rows, events, rows.astype(np.int64), at, erases, [])
    return Truth.of([(0, batch)], FoldSettings.of(FeatureSettings(), ["s0"]), files=True)


def test_the_one_that_ranks_as_users_spend_is_ahead() -> None:
    came = truth({"ada": (DAY, 40.0), "bob": (DAY, 30.0), "cyd": (DAY, 20.0), "dan": (DAY, 10.0)})
    right, wrong = np.array([40.0, 30.0, 20.0, 10.0]), np.array([10.0, 20.0, 30.0, 40.0])
    pairs = [
        Pair(served("old", wrong, at_ms=at), served("new", right * 2, at_ms=at)) for at in (0, 1)
    ]
    judged = [Judged.of(pair.known(came), came, 7, Thresholds()) for pair in pairs]
    (one,) = compare(judged)
    assert (one["shadow"], one["champion"], one["horizon_days"]) == ("new", "old", 7)
    assert (one["snapshots"], one["users"]) == (2, 4)
    assert one["ngini_delta"] > 0.5
    assert (one["bias"], one["bias_champion"]) == (2.0, 1.0)
    assert {row["role"]: row["generation"] for row in whole(judged[0].rows)} == {
        "champion": "old",
        "shadow": "new",
    }


def test_what_the_newer_of_the_two_had_seen_is_no_label_of_either() -> None:
    came = truth({"ada": (DAY, 40.0), "bob": (3 * DAY, 30.0)})
    same = np.full(4, 5.0)
    pair = Pair(served("old", same), served("new", same, as_of_ms=2 * DAY)).known(came)
    judged = Judged.of(pair, came, 7, Thresholds())
    assert judged.value.tolist() == [0.0, 30.0, 0.0, 0.0]


def test_who_was_erased_since_is_left_out_of_both() -> None:
    came = truth({"ada": (DAY, 40.0), "bob": (DAY, 30.0)}, erased="bob")
    same = np.full(4, 5.0)
    pair = Pair(served("old", same), served("new", same)).known(came)
    assert pair.champion.users == pair.shadow.users == ["ada", "cyd", "dan"]
