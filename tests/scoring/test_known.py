"""Questions about the past, against a fold of the log as it stood then."""

from __future__ import annotations

import numpy as np
import pytest

from featurestore.columns import Erase, EventBatch
from featurestore.features import FEATURES
from featurestore.vector import TOKENS
from scoring.judging.history import before
from scoring.judging.known import erased, known_at
from scoring.scorer import Scorer
from tests.scoring.shoplog import DAY_MS, START_MS, batches, shop
from tests.scoring.test_scorer import FEATURE_SETTINGS, OFFSET, SETTINGS, live
from tests.scoring.tiny import tiny

Log = list[tuple[int, EventBatch]]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    made = tiny(tokens=len(TOKENS), features=len(FEATURES), offset=OFFSET)
    return Scorer(made, SETTINGS, FEATURE_SETTINGS)


@pytest.mark.parametrize("size", [50, 100_000])
@pytest.mark.parametrize("hours", [0, 100])
def test_an_answer_is_the_state_that_a_fold_up_to_then_holds(
    scorer: Scorer, size: int, hours: int
) -> None:
    user, time_ms, micro = shop(30, 120)
    # beyond 72 hours an event is late: where the clocks stood then decides what becomes of it
    delay = np.random.default_rng(0).integers(0, hours * 3_600_000 + 1, len(time_ms))
    log: Log = list(batches(user, time_ms, micro, log_ms=time_ms + delay, size=size))
    cuts = [START_MS + d * DAY_MS + 7 for d in (3, 40, 41, 90, 500)]
    names = [f"u{n}" for n in np.unique(user)]
    asked = [(name, cut) for cut in cuts for name in names] + [("nobody", cuts[0])]
    got = {}
    for known in known_at(
        log, [a for a, _ in asked], np.array([c for _, c in asked]), scorer, FEATURE_SETTINGS, ["s"]
    ):
        for row, q in enumerate(known.question.tolist()):
            assert asked[q] not in got
            got[asked[q]] = known.states.select(np.array([row])), known.head[row]
    assert len(got) == len(asked)
    assert not got["nobody", cuts[0]][0].known()[0]
    for cut in cuts:
        folded = live(scorer, list(before(log, cut)))
        for name in names:
            states, head = got[name, cut]
            if name not in folded:
                assert not states.known()[0]
                continue
            _, other_head, other = folded[name]
            assert states.head.tobytes() == other.head.tobytes()
            np.testing.assert_allclose(head, other_head, atol=1e-6)


def test_users_whom_the_log_erases_are_named() -> None:
    (_, batch), *_ = batches(*shop(5, 60), size=10**6)
    assert erased([(0, batch)]) == set()
    batch.erases.append(Erase(2, 0, START_MS))
    assert erased([(0, batch)]) == {batch.users[2]}
