"""Training rows are what the live score saw, and nothing of what came later."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from featurestore.clock import Clocks
from featurestore.columns import Erase, EventBatch
from featurestore.features import FEATURES
from featurestore.fold import FoldSettings, fold
from featurestore.settings import FeatureSettings
from featurestore.state import States
from featurestore.vector import TOKENS, encode
from scoring.scorer import Scorer
from scoring.settings import ModelSettings
from scoring.training.examples import Examples, Log, build, labels_from_ms, rolling_cutoffs
from tests.scoring.carried import carry_rows
from tests.scoring.shoplog import DAY_MS, START_MS, batches, cutoff_days, shop
from tests.scoring.test_scorer import OFFSET, live
from tests.scoring.tiny import HORIZONS_S, tiny

FEATURE_SETTINGS = FeatureSettings()
CUTS = cutoff_days([20, 41, 60, 83])


def examples(log: Log, share: float = 1.0) -> Examples:
    return build(
        log, FEATURE_SETTINGS, ["s0"], HORIZONS_S, CUTS, log_start_ms=START_MS, share=share
    )


def delayed(users: int = 60, size: int = 500, seed: int = 0) -> list[tuple[int, EventBatch]]:
    """A log whose events reach it up to 60 hours late, out of order."""
    user, time_ms, micro = shop(users, 200)
    delay = np.random.default_rng(seed).integers(0, 60 * 3_600_000, len(time_ms))
    return list(batches(user, time_ms, micro, log_ms=time_ms + delay, size=size))


def test_rows_equal_the_vectors_of_a_live_fold_event_by_event() -> None:
    log = delayed(size=1)
    got = examples(log)
    fold_settings = FoldSettings.of(FEATURE_SETTINGS, ["s0"])
    for window, cut in enumerate(CUTS.tolist()):
        states: dict[str, bytes] = {}
        clocks = Clocks.start(1)
        for _, batch in log:
            if batch.log_ms[0] >= cut:
                break
            held = States.decode(batch.users, [states.get(u) for u in batch.users])
            folded = fold(held, batch, clocks, fold_settings)
            clocks = folded.clocks
            states[batch.users[0]] = folded.states.encode()[0]
        rows = got.rows(got.window == window)
        names = [got.users[u] for u in rows.user.tolist()]
        assert sorted(names) == sorted(states)
        held = States.decode(names, [states[name] for name in names])
        as_of = np.maximum(held.head["last_ms"], cut)
        want = encode(held, as_of, START_MS, FEATURE_SETTINGS)
        np.testing.assert_array_equal(rows.features, want)


def test_carries_equal_those_of_a_live_scorer_at_each_cut_off() -> None:
    made = tiny(tokens=len(TOKENS), features=len(FEATURES), offset=OFFSET)
    scorer = Scorer(made, ModelSettings(), FEATURE_SETTINGS)
    log = delayed(users=400)
    got = examples(log)
    carries = carry_rows(made, got)
    # late events re-order some heads, so that some users need a second sequence
    assert len(got.starts) - 1 > len(np.unique(got.user))
    for window, cut in enumerate(CUTS.tolist()):
        arrived = [(p, cut_before(batch, cut)) for p, batch in log]
        head = live(scorer, [(p, batch) for p, batch in arrived if batch.size])
        rows = np.flatnonzero(got.window == window)
        want = np.stack([head[got.users[u]][1] for u in got.user[rows].tolist()])
        np.testing.assert_allclose(carries[rows], want, atol=1e-5)


def cut_before(batch: EventBatch, cut: int) -> EventBatch:
    at = np.flatnonzero(batch.log_ms < cut)
    used, row = np.unique(batch.user[at], return_inverse=True)
    return EventBatch(
        [batch.users[u] for u in used.tolist()],
        row.astype(np.int32),
        batch.events[at],
        batch.offset[at],
        batch.log_ms[at],
    )


def test_batch_boundaries_change_nothing() -> None:
    one, many = examples(delayed(size=10**6)), examples(delayed(size=7))
    order_one, order_many = _by_name(one), _by_name(many)
    for name in ("window", "features", "value", "between", "mask", "position"):
        np.testing.assert_array_equal(
            getattr(one, name)[order_one], getattr(many, name)[order_many]
        )


def _by_name(rows: Examples) -> npt.NDArray[np.intp]:
    names = np.array(rows.users)[rows.user]
    return np.lexsort((rows.window, names))


def test_nothing_that_comes_after_a_cut_off_is_seen() -> None:
    log = delayed()
    changed = []
    for p, batch in log:
        events = batch.events.copy()
        events["value_micro"][batch.log_ms >= CUTS[1]] *= 5
        changed.append((p, replace(batch, events=events)))
    before, after = examples(log), examples(changed)
    early = before.window <= 1
    np.testing.assert_array_equal(before.features[early], after.features[early])
    assert (before.value[early] != after.value[early]).any()
    assert (before.features[~early] != after.features[~early]).any()


def test_labels_are_net_value_in_event_time_after_the_cut_off() -> None:
    user, time_ms, micro = shop(60, 200)
    got = examples(batches(user, time_ms, micro))
    refunded = 0
    for n in range(0, len(got), 3):
        who = int(got.users[got.user[n]][1:])
        cut = CUTS[got.window[n]]
        for h, seconds in enumerate(HORIZONS_S):
            inside = (user == who) & (time_ms >= cut) & (time_ms < cut + seconds * 1000)
            net = int(micro[inside].sum())
            refunded += net < 0
            assert got.value[n, h] == pytest.approx(max(0, net) / 1e6)
            assert got.active[n, h] == (micro[inside] > 0).any()
    assert refunded > 0
    parts = got.increments()
    assert (parts >= 0).all()
    np.testing.assert_allclose(
        parts.cumsum(axis=1), np.maximum.accumulate(got.value, axis=1), atol=1e-9
    )


def test_only_mature_labels_are_marked() -> None:
    got = examples(delayed())
    lateness_ms = 3 * DAY_MS
    for n in range(len(got)):
        for h, seconds in enumerate(HORIZONS_S):
            ripe = CUTS[got.window[n]] + seconds * 1000 + lateness_ms <= got.clock_ms
            assert got.mask[n, h] == ripe
    short = build(delayed(), FEATURE_SETTINGS, ["s0"], HORIZONS_S, cutoff_days([195]))
    assert not short.mask.any()


def test_an_erased_user_leaves_neither_row_nor_label_nor_token() -> None:
    log = delayed()
    last = int(log[-1][1].log_ms.max())
    erase = EventBatch.empty()
    erase.users, erase.erases = ["u5"], [Erase(0, 0, last)]
    with_erasure = examples([*log, (0, erase)])
    gone = with_erasure.users.index("u5")
    assert "u5" in np.array(examples(log).users)[examples(log).user]
    assert not (with_erasure.user == gone).any()
    others = examples(log)
    kept = others.rows(np.array(others.users)[others.user] != "u5")
    np.testing.assert_array_equal(with_erasure.features, kept.features)
    np.testing.assert_array_equal(with_erasure.value, kept.value)


def test_a_share_of_users_is_the_same_rows_of_fewer_users() -> None:
    whole, part = examples(delayed()), examples(delayed(), share=0.5)
    assert 10 < len(np.unique(part.user)) < 50
    kept = np.isin(np.array(whole.users)[whole.user], part.users)
    # Only of those who are drawn is it known what was said before.
    assert 0 < sum(part.outcomes.values()) < sum(whole.outcomes.values())
    assert part.outcomes["applied"] + part.outcomes["applied_late"] == sum(part.outcomes.values())
    np.testing.assert_array_equal(whole.features[kept], part.features)
    np.testing.assert_array_equal(whole.value[kept], part.value)


def test_rolling_cut_offs_leave_room_for_the_shortest_label() -> None:
    clock = START_MS + 100 * DAY_MS
    cuts = rolling_cutoffs(START_MS, clock, HORIZONS_S, 3 * DAY_MS, 8)
    assert len(cuts) == 8
    assert cuts[-1] == clock - 10 * DAY_MS
    assert (np.diff(cuts) > 0).all()
    assert not len(rolling_cutoffs(START_MS, START_MS + 16 * DAY_MS, HORIZONS_S, 3 * DAY_MS))


@pytest.mark.parametrize("days", [(7, 30, 90), (1, 2), (30, 365)])
def test_labels_of_a_horizon_exist_from_the_date_said_on(days: tuple[int, ...]) -> None:
    horizons_s, lateness_ms = tuple(d * 86_400 for d in days), 3 * DAY_MS
    for horizon_s in horizons_s:
        said = labels_from_ms(START_MS, horizons_s, lateness_ms, horizon_s)
        for clock, there in ((said - DAY_MS, False), (said + 1, True)):
            cuts = rolling_cutoffs(START_MS, clock, horizons_s, lateness_ms)
            assert (cuts + horizon_s * 1000 + lateness_ms <= clock).any() == there
