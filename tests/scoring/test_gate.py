"""What the gate lets pass: by ranking with an interval, by level at each origin."""

from __future__ import annotations

import re
import zlib

import numpy as np
import pytest

from scoring.errors import TooLittleData
from scoring.judging.metrics import Values
from scoring.retraining import gate, origins
from scoring.retraining.corrector import Corrector, Tried
from scoring.retraining.gate import Verdict
from scoring.retraining.scan import LogSummary, check
from scoring.retraining.settings import RetrainSettings
from scoring.training.draws import Distinct, drawn
from scoring.training.examples import DAY_MS

USERS, WINDOWS = 400, 5
SETTINGS = RetrainSettings(draws=200)


def spent(seed: int = 0) -> Values:
    """What users spend in five windows, most of them nothing."""
    r = np.random.default_rng(seed)
    worth = np.tile(r.lognormal(2, 1, USERS), WINDOWS)
    return np.where(r.random(USERS * WINDOWS) < 0.4, worth * r.lognormal(0, 0.3, len(worth)), 0.0)


def guess(noise: float, seed: int, level: float = 1.0) -> Values:
    """A prediction that is the worse the more noise there is; its total in each window is right."""
    r = np.random.default_rng(seed)
    truth = spent()
    said = (truth + 5.0) * r.lognormal(0, noise, len(truth))
    for n in range(WINDOWS):
        at = slice(n * USERS, (n + 1) * USERS)
        said[at] *= level * truth[at].sum() / said[at].sum()
    return said


def judged(new: Values, old: Values, *, lenient: bool = False) -> Verdict:
    user = np.tile(np.arange(USERS), WINDOWS)
    window = np.repeat(np.arange(WINDOWS), USERS)
    return gate.judge(spent(), new, old, user, window, SETTINGS, lenient=lenient, where="5 origins")


def test_what_ranks_better_passes_and_what_ranks_worse_does_not() -> None:
    good, bad = guess(0.3, 1), guess(1.5, 2)
    better, worse = judged(good, bad), judged(bad, good)
    assert better.passed and "no worse" in better.reason
    assert re.search(r"; bias \d\.\d\d after \d\.\d\d, off by \d\.\d\d after", better.reason)
    assert not worse.passed and "may rank worse" in worse.reason
    assert worse.facts["ngini_low"] < worse.facts["ngini_delta"] < worse.facts["ngini_high"] < 0


def test_what_cannot_be_told_apart_is_refused_where_proof_is_owed_and_passes_where_not() -> None:
    one, other = guess(1.0, 1), guess(1.0, 3)
    strict, lenient = judged(one, other), judged(one, other, lenient=True)
    assert strict.facts["ngini_low"] < SETTINGS.ngini_low < strict.facts["ngini_high"]
    assert not strict.passed
    assert lenient.passed
    assert not judged(guess(1.5, 2), guess(0.3, 1), lenient=True).passed  # clearly worse


def test_the_same_prediction_passes_by_identity() -> None:
    same = judged(guess(0.3, 1), guess(0.3, 1))
    assert same.passed
    assert (same.facts["ngini_low"], same.facts["ngini_high"]) == (0.0, 0.0)


def test_a_level_further_off_is_refused_however_well_it_ranks() -> None:
    good, bad = guess(0.1, 1), guess(1.0, 2)
    off = judged(good * 1.06, bad)
    assert not off.passed and "level is further off" in off.reason
    assert judged(good * 1.04, bad).passed


def test_too_much_at_one_origin_does_not_make_up_for_too_little_at_another() -> None:
    good, swinging = guess(0.1, 1), guess(0.1, 1)
    swinging[:USERS] *= 1.5
    swinging[USERS : 2 * USERS] *= 0.5
    found = judged(swinging, good)
    assert abs(found.facts["bias"] - 1) < 0.2
    assert found.facts["level_off"] > 0.1
    assert not found.passed and "level is further off" in found.reason


def test_what_cannot_be_told_is_no_pass() -> None:
    none = np.zeros(USERS)
    user, window = np.arange(USERS), np.zeros(USERS, np.int64)
    said = np.ones(USERS)
    found = gate.judge(none, said, said, user, window, SETTINGS, lenient=True, where="nothing")
    assert not found.passed
    assert found.facts["ngini_delta"] is None
    assert "nobody spent in the windows that judge (nothing)" in found.reason
    assert "nan" not in found.reason


def test_a_short_log_has_fewer_origins_and_says_so() -> None:
    grid = np.arange(10, 100, 8, dtype=np.int64) * DAY_MS
    horizons_s = [7 * 86_400, 30 * 86_400, 90 * 86_400]
    plan = origins.plan(110 * DAY_MS, horizons_s, 3 * DAY_MS, grid, RetrainSettings())
    # Two cut-offs with mature labels of 30 days lie before day 77, none before day 47.
    assert (plan.at_ms // DAY_MS).tolist() == [77]
    assert plan.note.startswith("1 of 5 origins: the log is too short")
    assert origins.plan(60 * DAY_MS, horizons_s, 0, grid, RetrainSettings()).at_ms.size == 0
    assert origins.plan(110 * DAY_MS, [86_400], 0, grid, RetrainSettings()).days == 1
    none = origins.plan(60 * DAY_MS, [86_400], 0, grid[-1:], RetrainSettings(origins=1)).note
    assert none.startswith("0 of 1 origin: ") and " windows of 1 day with" in none
    week = RetrainSettings(judged_days=10, step_days=7, origins=3)
    assert origins.plan(110 * DAY_MS, horizons_s, 0, grid, week).at_ms.tolist() == [
        day * DAY_MS for day in (89, 96, 103)
    ]


def test_a_level_corrector_is_kept_where_it_helps_at_four_of_five_origins() -> None:
    helps, hurts = Tried.at(0, 1.2, 0.8), Tried.at(0, 0.9, 0.8)
    kept = Corrector.judged(1.1, [helps] * 4 + [hurts], 4)
    assert kept.kept and kept.as_json()["helped"] == 4
    assert not Corrector.judged(1.1, [helps] * 3 + [hurts] * 2, 4).kept
    assert not Corrector.judged(1.1, [helps] * 3, 4).kept
    assert [one["helps"] for one in kept.as_json()["origins"]] == [True] * 4 + [False]
    # Nobody spent after an origin: null, since JSON knows no NaN.
    (none,) = Corrector.judged(1.1, [Tried.at(0, 1.2, float("nan"))], 4).as_json()["origins"]
    assert (none["bias"], none["corrected"], none["helps"]) == (None, None, False)


def test_a_smaller_part_of_the_users_lies_in_a_larger_one_and_apart_from_who_is_held_out() -> None:
    users = [f"user-{n:06d}" for n in range(4000)]
    part = [user for user in users if drawn(user, 0.2)]
    assert 700 < len(part) < 900
    assert all(drawn(user, 0.5) for user in part)
    # As scoring.training.splits holds out; CRCs of names of one length differ by one constant.
    held = [user for user in part if zlib.crc32(f"0:{user}".encode()) < 0.4 * (1 << 32)]
    assert 0.3 < len(held) / len(part) < 0.5


def test_distinct_users_are_counted_in_bounded_memory() -> None:
    many = Distinct(most=1000)
    many.add(f"u{n}" for n in range(20_000))
    many.add(f"u{n}" for n in range(20_000))
    assert many.count == pytest.approx(20_000, rel=0.15)
    assert len(many._kept) <= 1000


def test_prices_that_are_all_one_are_refused_unless_they_are_meant() -> None:
    flat = LogSummary(9, 3, 0, 1, orders=9, refunds=0, least_micro=5, most_micro=5)
    with pytest.raises(TooLittleData, match="FLAT_PRICES"):
        check(flat, flat_prices=False)
    check(flat, flat_prices=True)
