"""The scorer: packed form, silence curve, and carries that do not depend on batches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from featurestore.clock import Clocks
from featurestore.columns import NO_TIME, Erase, EventBatch
from featurestore.features import FEATURES
from featurestore.fold import FoldSettings, fold
from featurestore.settings import FeatureSettings
from featurestore.state import States
from featurestore.vector import TOKENS
from scoring.errors import CarryError, GenerationError
from scoring.interface import Floats, Prediction
from scoring.scorer import Scorer
from scoring.settings import ModelSettings
from tests.scoring.shoplog import DAY_MS, START_MS, batches, shop
from tests.scoring.tiny import tiny

OFFSET = [feature.name for feature in FEATURES].index("log_mean_order_value")
SETTINGS, FEATURE_SETTINGS = ModelSettings(), FeatureSettings()


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    made = tiny(tokens=len(TOKENS), features=len(FEATURES), offset=OFFSET)
    return Scorer(made, SETTINGS, FEATURE_SETTINGS)


def live(
    scorer: Scorer, log: list[tuple[int, EventBatch]], sources: int = 1
) -> dict[str, tuple[Floats, Floats, States]]:
    """Fold and advance batch by batch, each user packed in between, as a worker does."""
    fold_settings = FoldSettings.of(FEATURE_SETTINGS, [f"s{i}" for i in range(sources)])
    rows: dict[str, tuple[bytes, bytes]] = {}
    clocks = Clocks.start(sources)
    for _, batch in log:
        held = [rows.get(user) for user in batch.users]
        states = States.decode(batch.users, [row[0] if row else None for row in held])
        settled, head, last = scorer.unpack([row[1] if row else None for row in held])
        folded = fold(states, batch, clocks, fold_settings)
        clocks = folded.clocks
        settled, head = scorer.advance(folded, settled, head)
        packed = scorer.pack(settled, head, last, folded.states.has_tail())
        rows.update(
            (user, (state, score))
            for user, state, score in zip(batch.users, folded.states.encode(), packed, strict=True)
        )
    out = {}
    for user, row in rows.items():
        settled, head, _ = scorer.unpack([row[1]])
        out[user] = settled[0], head[0], States.decode([user], [row[0]])
    return out


@pytest.mark.parametrize("size", [1, 17, 100_000])
def test_carries_do_not_depend_on_batches_or_on_arrival_order(scorer: Scorer, size: int) -> None:
    user, time_ms, micro = shop(40, 120)
    delay = np.random.default_rng(0).integers(0, 60 * 3_600_000, len(time_ms))
    whole = live(scorer, list(batches(user, time_ms, micro)))
    mixed = live(scorer, list(batches(user, time_ms, micro, log_ms=time_ms + delay, size=size)))
    assert set(whole) == set(mixed)
    assert any(states.has_tail()[0] for _, _, states in mixed.values())
    for name, (_, head, _) in whole.items():
        np.testing.assert_allclose(mixed[name][1], head, atol=1e-5)
        if not mixed[name][2].has_tail()[0]:
            np.testing.assert_array_equal(mixed[name][0], mixed[name][1])


def test_an_erased_user_starts_again_from_nothing(scorer: Scorer) -> None:
    user, time_ms, micro = shop(10, 60)
    log = list(batches(user, time_ms, micro))
    last = int(time_ms.max())
    erase = EventBatch.empty()
    erase.users, erase.erases = ["u3"], [Erase(0, 0, last)]
    again = list(batches(np.array([3, 3]), last + np.array([5, 9]), np.array([10**6, 10**6])))
    got = live(scorer, [*log, (0, erase), *again])["u3"]
    clean = live(scorer, [*batches(np.array([99]), np.array([last]), np.array([1])), *again])["u3"]
    np.testing.assert_allclose(got[1], clean[1], atol=1e-6)


def test_what_is_packed_comes_back_bit_by_bit(scorer: Scorer) -> None:
    r = np.random.default_rng(0)
    n, c = 50, scorer.start(1).shape[1]
    settled, head = r.normal(size=(2, n, c)).astype(np.float32)
    tail = r.random(n) < 0.5
    head[~tail] = settled[~tail]
    last = scorer.last(7, START_MS + np.arange(n), curve(r, n))
    blobs: list[bytes | None] = [*scorer.pack(settled, head, last, tail)]
    blobs.insert(10, None)
    got_settled, got_head, got_last = scorer.unpack(blobs)
    rest = np.delete(np.arange(n + 1), 10)
    np.testing.assert_array_equal(got_settled[rest], settled)
    np.testing.assert_array_equal(got_head[rest], head)
    np.testing.assert_array_equal(got_last[rest], last)
    assert not got_head[10].any()
    assert got_last["revision"][10] == 0
    assert got_last["as_of_ms"][10] == NO_TIME
    sizes = {len(blob) for blob in blobs if blob}
    assert max(sizes) - min(sizes) == 4 * c  # without a tail one carry is kept, not two


def test_a_carry_of_another_generation_is_refused(scorer: Scorer) -> None:
    good = scorer.pack(scorer.start(1), scorer.start(1), scorer.no_last(1), np.array([False]))[0]
    for bad in (good[:-4], good + b"\0", b"\xff" + good[1:], b"x"):
        with pytest.raises(CarryError, match="build the store anew"):
            scorer.unpack([None, bad])


def test_a_generation_of_other_horizons_is_refused() -> None:
    with pytest.raises(GenerationError, match="7, 30, 90 days, the settings ask for 7, 365"):
        Scorer(tiny(), ModelSettings(horizons_days=(7, 365), headline="d7"), FEATURE_SETTINGS)


def curve(r: np.random.Generator, n: int) -> Prediction:
    k, h = len(SETTINGS.silence_days), len(SETTINGS.horizons_days)
    steps = r.normal(-0.08, 0.1, (n, k, h)).cumsum(axis=1)
    expected = (20 * np.exp(steps)).astype(np.float32)
    flat: Floats = np.zeros((n, h), np.float32)
    return Prediction(expected, expected, flat, flat, np.zeros((n, h, 3), np.float32))


def test_the_last_document_answers_for_later_times_by_its_silence_curve(scorer: Scorer) -> None:
    r = np.random.default_rng(1)
    made, n = curve(r, 30), 30
    as_of = START_MS + r.integers(0, 10**9, n)
    last = scorer.last(3, as_of, made)
    days = np.array(SETTINGS.silence_days)
    for later in (-1.0, 0.0, 0.5, 1.0, 20.0, 365.0, 4000.0):
        got = scorer.previous_at(last, as_of + round(later * DAY_MS))
        for u in range(0, n, 7):
            for h in range(3):
                want = np.interp(later, days, made.expected[u, :, h])
                assert got[u, h] == pytest.approx(want, rel=1e-5)
    assert not scorer.previous_at(scorer.no_last(2), np.array([START_MS, 0])).any()


def test_silence_is_due_when_the_headline_has_moved_by_the_share(scorer: Scorer) -> None:
    r = np.random.default_rng(2)
    n = 200
    made = curve(r, n)
    made.expected[:5] = made.expected[:5, :1]  # these never move
    as_of = START_MS + r.integers(0, 10**9, n)
    due = scorer.due_ms(made, as_of, 2)
    hours = np.arange(0, 365 * 24 + 1)
    days = np.array(SETTINGS.silence_days)
    assert (due[:5] == NO_TIME).all()
    seen = 0
    for u in range(5, n):
        path = np.interp(hours / 24, days, made.expected[u, :, 2])
        moved = np.abs(path / path[0] - 1) >= SETTINGS.republish_share
        if moved.any():
            want = as_of[u] + int(hours[np.argmax(moved)]) * 3_600_000
            assert abs(due[u] - want) <= 3_600_000
            seen += 1
        else:
            assert due[u] == NO_TIME
    assert seen > 100


def test_rescore_gives_each_knot_what_a_query_at_its_time_gives(scorer: Scorer) -> None:
    found = live(scorer, list(batches(*shop(8, 90))))
    names: list[str] = list(found)
    states = States.concat([found[name][2] for name in names])
    head = np.stack([found[name][1] for name in names])
    as_of: npt.NDArray[np.int64] = states.head["last_ms"].copy()
    made = scorer.rescore(states, head, as_of)
    later = scorer.rescore(states, head, as_of + 33 * DAY_MS)
    knot = SETTINGS.silence_days.index(33)
    np.testing.assert_allclose(made.expected[:, knot], later.expected[:, 0], rtol=2e-4)
    np.testing.assert_allclose(made.p_active[:, knot], later.p_active[:, 0], rtol=2e-4)
