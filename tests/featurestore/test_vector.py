"""Every column against the exact twin, within the error that the feature table states."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.exact import bound, exact_features
from featurestore.features import FEATURES, HELD, STATIC, WINDOWS, table
from featurestore.fold_settings import DAY_MS
from featurestore.settings import FeatureSettings
from featurestore.state import States, blank
from featurestore.twin import Twin
from featurestore.vector import TOKENS
from featurestore.vector import encode as encode_as_asked
from tests.featurestore.logs import (
    HOUR_MS,
    START_MS,
    Log,
    Record,
    batches,
    draw_event,
    in_time,
    logs,
    play,
    settings,
)

# What `settings` in logs.py makes of it.
SETTINGS = FeatureSettings(half_lives_days=(0.3, 2.0, 9.0), social=True)
TABLE = table(SETTINGS, held=True)
encode = partial(encode_as_asked, held=True)
NAMES = [feature.name for feature in TABLE]
KNOTS_MS = np.array([0, 1, 3, 7, 14, 30, 60, 90, 180, 365], np.int64) * DAY_MS


def random_states(seed: int, size: int = 200) -> States:
    return play(in_time(plain_log(random.Random(seed), size)), [50], settings(3)).states()


def plain_log(chance: random.Random, size: int, pace_ms: int = DAY_MS) -> Log:
    """A log without hypothesis, for tests that need any."""
    log: Log = [[], [], []]
    now = START_MS
    for _ in range(size):
        now += int(chance.expovariate(1 / pace_ms))
        source = chance.randrange(3)
        event = draw_event(chance, now, source)
        user = f"user-{chance.randrange(9)}"
        if user == "user-0":  # the one without an edge or a word
            event = replace(event, target=0)
        if user in ("user-0", "user-1", "user-2"):
            event = replace(event, words=(0, 0, 0, 0))
        log[source].append(Record(source, len(log[source]), user, now, event))
    return log


@given(st.data())
def test_every_feature_is_within_its_stated_error(data: st.DataObject) -> None:
    log = data.draw(logs(3, size=80))
    rules = settings(3)
    states = play(in_time(log), [1000], rules).states()
    twin = Twin(rules)
    for batch in batches(in_time(log), [1000]):
        twin.fold(batch)
    known = np.flatnonzero(states.known())
    states = states.select(known)
    if not len(known):
        return
    silence = data.draw(st.sampled_from([0, 1, DAY_MS // 3, 5 * DAY_MS, 29 * DAY_MS, 89 * DAY_MS]))
    as_of = states.head["last_ms"] + silence + data.draw(st.integers(0, 2 * DAY_MS))
    log_start = data.draw(st.sampled_from([None, START_MS]))
    got = encode(states, as_of, log_start, SETTINGS)
    for u, name in enumerate(states.users):
        side = twin.users[name].head(rules)
        expected = exact_features(side, int(as_of[u]), log_start, SETTINGS, held=True)
        for column, value in zip(NAMES, got[u].tolist(), strict=True):
            wanted = expected[column]
            if column in WINDOWS:
                off = abs(_unlog(value) - _unlog(wanted))
                limit = bound(column, side, int(as_of[u]))
                assert off <= limit + 1e-4 * (1 + abs(_unlog(wanted))), column
            else:
                assert value == pytest.approx(wanted, rel=2e-5, abs=1e-4), column


def _unlog(x: float) -> float:
    return math.copysign(math.expm1(abs(x)), x)


def test_many_query_times_give_what_each_gives_alone() -> None:
    states = random_states(1)
    when = states.head["last_ms"][:, None] + KNOTS_MS
    together = encode(states, when, START_MS, SETTINGS)
    assert together.shape == (len(states.users), len(KNOTS_MS), len(TABLE))
    for k in range(len(KNOTS_MS)):
        alone = encode(states.head, when[:, k], START_MS, SETTINGS)
        assert alone.tobytes() == together[:, k].tobytes()


def test_number_of_users_changes_no_bit() -> None:
    states = random_states(2)
    when = states.head["last_ms"][:, None] + KNOTS_MS
    many = np.tile(np.arange(len(states.users)), 100)
    got = encode(states.select(many), when[many], START_MS, SETTINGS)
    one_by_one = [
        encode(states.select(np.array([u])), when[u : u + 1], START_MS, SETTINGS)
        for u in range(len(states.users))
    ]
    assert got.tobytes() == np.tile(np.concatenate(one_by_one), (100, 1, 1)).tobytes()


def test_columns_that_do_not_move_come_first_and_stay() -> None:
    assert [f.moves for f in FEATURES] == [False] * STATIC + [True] * (len(FEATURES) - STATIC)
    states = random_states(3)
    when = states.head["last_ms"][:, None] + KNOTS_MS
    got = encode(states, when, START_MS, SETTINGS)
    assert (got[:, :1, :STATIC] == got[:, :, :STATIC]).all()
    assert (got[:, 0, STATIC:] != got[:, 5, STATIC:]).any(axis=0).sum() >= 30


def test_held_columns_stay_in_silence_and_begin_at_the_decayed_ones() -> None:
    states = random_states(6)
    when = states.head["last_ms"][:, None] + KNOTS_MS
    got = encode(states, when, START_MS, SETTINGS)
    held = [NAMES.index(feature.name) for feature in HELD]
    assert (got[:, :1, held] == got[:, :, held]).all()
    assert not any(feature.moves for feature in HELD)
    head = states.head
    own = np.maximum(head["last_order_ms"], head["last_refund_ms"]) == head["last_ms"]
    assert own.any()
    pairs = [(f"held_orders_{h}", f"decayed_orders_{h}") for h in (1, 2, 3)]
    for still, moving in pairs:
        a, b = (got[own, 0, NAMES.index(name)] for name in (still, moving))
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_windows_that_are_not_asked_for_are_0_and_change_no_other_column() -> None:
    states = random_states(7)
    when = states.head["last_ms"][:, None] + KNOTS_MS
    all_of_them = encode(states, when, START_MS, SETTINGS)
    without = encode(states, when, START_MS, SETTINGS, windows=False)
    inside = np.array([name in WINDOWS for name in NAMES])
    assert all_of_them[:, :, inside].any()
    assert not without[:, :, inside].any()
    assert all_of_them[:, :, ~inside].tobytes() == without[:, :, ~inside].tobytes()
    bare = encode_as_asked(states, when, START_MS, SETTINGS)
    kept = np.array([not name.startswith("held_") for name in NAMES])
    assert bare.tobytes() == all_of_them[:, :, kept].tobytes()


def test_unknown_user_has_finite_features_and_never() -> None:
    got = encode(blank(2), np.array([START_MS, START_MS + DAY_MS]), START_MS, SETTINGS)
    assert np.isfinite(got).all()
    column = dict(zip(NAMES, got[1].tolist(), strict=True))
    assert column["orders"] == column["events_30d"] == column["tenure"] == 0
    for never in ("since_event", "since_order", "order_gap", "typical_event_gap", "order_tenure"):
        assert column[never] == pytest.approx(math.log1p(3650), rel=1e-4)
    assert column["log_age"] == pytest.approx(math.log(2))
    assert column["log_mean_order_value"] == pytest.approx(math.log(SETTINGS.order_value_prior))


def test_features_are_finite_at_all_knots_whatever_the_history() -> None:
    for seed in range(5):
        states = random_states(seed)
        when = states.head["last_ms"][:, None] + KNOTS_MS
        assert np.isfinite(encode(states, when, START_MS, SETTINGS)).all()


def test_decayed_counts_fall_in_silence_and_recencies_rise() -> None:
    states = random_states(4)
    got = encode(states, states.head["last_ms"][:, None] + KNOTS_MS, None, SETTINGS)
    falls = NAMES.index("decayed_orders_2"), NAMES.index("events_30d")
    rises = NAMES.index("since_event"), NAMES.index("tenure")
    for column in falls:
        assert (np.diff(got[:, :, column], axis=1) <= 0).all()
    for column in rises:
        assert (np.diff(got[:, :, column], axis=1) > 0).all()


def test_window_passes_evenly_through_the_bucket_in_which_it_begins() -> None:
    begin = START_MS - START_MS % (7 * DAY_MS)
    hours = [begin + i * HOUR_MS for i in range(168)]
    events = [
        replace(draw_event(random.Random(i), begin, 0), time_ms=hour, record_ms=hour, id_lo=i)
        for i, hour in enumerate(hours)
    ]
    told = [Record(0, i, "ada", e.time_ms, e) for i, e in enumerate(events)]
    states = play(told, [1000], settings(1)).states()
    for share in (0.25, 0.5, 0.75):
        as_of = np.array([begin + int((30 + 7 * share) * DAY_MS)])
        got = dict(zip(NAMES, encode(states, as_of, None, SETTINGS)[0].tolist(), strict=True))
        assert math.expm1(got["events_30d"]) == pytest.approx(168 * (1 - share), rel=1e-3)


def test_table_says_something_of_every_column_once() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(f.unit and f.window and f.meaning and f.error for f in TABLE)
    assert len(set(TOKENS)) == len(TOKENS)


def test_settled_side_and_head_are_encoded_alike() -> None:
    states = random_states(5)
    quiet = states.select(np.flatnonzero(~states.has_tail()))
    when = quiet.head["last_ms"] + DAY_MS
    assert (
        encode(quiet.settled, when, None, SETTINGS).tobytes()
        == encode(quiet.head, when, None, SETTINGS).tobytes()
    )
