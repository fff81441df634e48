"""Interests: directions of words learned with a generation, and projected live."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featurestore.columns import EventBatch, Kind
from featurestore.events import WORDS, word_codes
from featurestore.settings import FeatureSettings
from scoring import inputs
from scoring.errors import GenerationError
from scoring.generation import Generation
from scoring.interests import FILE, INTEREST_NAMES, WIDTH, Directions
from scoring.judging.metrics import ngini
from scoring.scorer import Scorer
from scoring.training.examples import ExampleBuilder, build
from scoring.training.forecasts import score
from scoring.zoo import graph, linear
from tests.scoring.shoplog import START_MS
from tests.scoring.test_social import CUTS, HORIZONS_S, LOG, MODEL, live

ON = FeatureSettings(interests=True)
RICH = ("watches", "gold", "ring")
POOR = ("socks", "pens", "paper")


def about(user: str) -> tuple[str, ...]:
    """What a user of the town searches for: of every circle that spends, something dear."""
    return RICH if SPENDS[user] else POOR


def spenders() -> dict[str, bool]:
    """Whether a user's circle spends more than the middle one."""
    total: dict[int, int] = {}
    users = {user for _, batch in LOG for user in batch.users}
    for _, batch in LOG:
        for row, event in zip(batch.user.tolist(), batch.events, strict=True):
            circle = int(batch.users[row][1:]) // 8
            total[circle] = total.get(circle, 0) + int(event["value_micro"])
    middle = float(np.median(list(total.values())))
    return {user: total.get(int(user[1:]) // 8, 0) > middle for user in users}


SPENDS = spenders()


def worded() -> list[tuple[int, EventBatch]]:
    """The town's log, with words instead of edges; all types of events are seen."""
    made, turn = [], 0
    for p, batch in LOG:
        events = batch.events.copy()
        events["target"] = 0
        for i, row in enumerate(batch.user.tolist()):
            turn += 1
            if not events["value_micro"][i]:
                words = about(batch.users[row])
                events["words"][i] = word_codes(words[turn % 3], words[(turn + 1) % 3])
                if turn % 2:
                    events["kind"][i], events["action"][i] = Kind.BROWSE, 0
        made.append((p, replace(batch, events=events, target=[])))
    return made


TOLD = worded()


ROWS = build(TOLD, ON, ["events"], HORIZONS_S, CUTS, START_MS, 0)
MADE = graph.train(ROWS)


def test_directions_are_those_of_scikit_learns_truncated_svd() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    r = np.random.default_rng(0)
    mixed = r.gamma(0.3, size=(300, 12)) @ r.gamma(0.3, size=(12, WORDS))
    words = (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)
    svd = decomposition.TruncatedSVD(WIDTH, algorithm="arpack").fit(words)
    ours = Directions.of(words)
    for i in range(WIDTH):
        cosine = float(ours.matrix[:, i] @ svd.components_[i])
        assert abs(cosine) == pytest.approx(1, abs=1e-4)
    again = Directions.load(ours.dump())
    np.testing.assert_array_equal(again(words), ours(words))


def test_what_too_few_rows_cannot_tell_is_nothing() -> None:
    assert not Directions.of(np.zeros((5, WORDS), np.float32)).matrix.any()
    one = np.zeros((3, WORDS), np.float32)
    one[:, 7] = 1
    made = Directions.of(one)
    assert made(one)[0].tolist() == [1] + [0] * (WIDTH - 1)


def test_what_is_served_is_what_a_row_of_that_instant_holds() -> None:
    until = int(CUTS[2])
    states = live(TOLD, until, ON)
    scorer = Scorer(MADE, MODEL, ON)
    start = MADE.manifest.log_start_ms
    builder = ExampleBuilder(ON, ["events"], HORIZONS_S, np.array([until]), start, 0)
    for p, batch in TOLD:
        builder.add(p, batch.before(until))
    rows = builder.finish(until)
    served = scorer.features(states, np.full((len(states.users), 1), until))[:, 0]
    place = {rows.users[u]: i for i, u in enumerate(rows.user.tolist())}
    wanted = inputs.of_rows(MADE, rows)[[place[user] for user in states.users]]
    np.testing.assert_allclose(served, wanted, rtol=1e-5, atol=1e-5)
    at = [MADE.manifest.features.index(name) for name in INTEREST_NAMES[:2]]
    assert np.abs(served[:, at]).max() > 0.3


def test_interests_tell_of_value_what_a_users_own_past_does_not() -> None:
    older, newest = ROWS.rows(ROWS.window < 3), ROWS.rows(ROWS.window == 3)

    def ranks(made: Generation) -> float:
        said = score(made, newest).expected[:, 0, 1]
        return ngini(newest.value[:, 1], said.astype(np.float64))

    assert ranks(graph.train(older)) > ranks(linear.train(older)) + 0.02


def test_words_that_training_never_saw_are_served() -> None:
    states = live(TOLD, int(CUTS[0]), ON)
    states.head["words"] = 0
    states.head["words"][:, ::2] = 1
    scorer = Scorer(MADE, MODEL, ON)
    when = np.full((len(states.users), 1), int(CUTS[1]))
    assert np.isfinite(scorer.features(states, when)).all()


def test_a_generation_is_refused_where_no_words_are_folded_or_its_file_is_damaged() -> None:
    with pytest.raises(GenerationError, match="LIVEVALUE_FEATURES__INTERESTS=true"):
        Scorer(MADE, MODEL, FeatureSettings())
    files = {name: data for name, data in MADE.files.items() if name != FILE}
    with pytest.raises(GenerationError, match="lacks interests"):
        inputs.Inputs(MADE.manifest, files, ON)
    with pytest.raises(GenerationError, match="damaged"):
        Directions.load(Directions(np.zeros((3, 3), np.float32)).dump())
