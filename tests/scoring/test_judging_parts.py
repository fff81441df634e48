"""Parts of an evaluation: thresholds, targeting, groups, what is pooled, what may be known."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from featurestore.columns import Kind
from featurestore.fold_settings import FoldSettings
from featurestore.settings import FeatureSettings
from scoring.judging import figures, metrics, thresholds
from scoring.judging.baselines.fitted import BASELINES
from scoring.judging.bootstrap import Part, bootstrap, paired_bootstrap
from scoring.judging.cutoffs import BadQuestion
from scoring.judging.evaluation import Question, Report, evaluate
from scoring.judging.groups import groups
from scoring.judging.history import DAY, History
from scoring.judging.metrics import Values
from scoring.judging.past import Past
from scoring.judging.targeting import PATIENCE_MS, Clicks, targeted, targeting
from scoring.judging.thresholds import Task
from scoring.judging.validation import Validation
from scoring.training.forecasts import Forecast
from tests.scoring.logs import START, shoppers

LOG = shoppers(users=300)
AS_OF = START // DAY * DAY + 150 * DAY
FOLD = FoldSettings.of(FeatureSettings(), ["events"])


def ask(**said: object) -> Report:
    question = Question((AS_OF,), (30,), ("pareto_gg",), draws=20)
    return evaluate(LOG, replace(question, **said), FeatureSettings(), ["events"])  # type: ignore[arg-type]


# ── a label longer than the horizon ──────────────────────────────────────────────────────────────


def test_scores_of_a_horizon_are_held_against_what_came_true_of_a_longer_one() -> None:
    short, long, both = ask(), ask(horizons_days=(60,)), ask(label_days=60)
    said, came = both.scored[0], long.scored[0]
    assert np.array_equal(said.forecast.expected, short.scored[0].forecast.expected)
    assert np.array_equal(said.actual, came.actual)
    assert said.actual.sum() > short.scored[0].actual.sum()
    run = both.runs[0]
    assert (run["horizon_days"], run["label_days"]) == (30, 60)
    assert run["metrics"]["ngini"] == metrics.ngini(came.actual, said.forecast.expected)
    # the threshold, too, was chosen on a window so long that it had ended
    assert run["classification"]["validation"] == long.runs[0]["classification"]["validation"]
    assert any("60 days" in note for note in both.notes)
    assert short.runs[0]["label_days"] == 30


def test_a_label_that_ends_before_the_horizon_or_after_the_log_is_refused() -> None:
    with pytest.raises(BadQuestion, match="shorter than --horizon"):
        ask(label_days=20)
    with pytest.raises(BadQuestion, match=r"999 days .* past the log's end"):
        ask(label_days=999)


# ── yes or no ────────────────────────────────────────────────────────────────────────────────────


def test_no_threshold_has_a_higher_f1_than_the_chosen_one() -> None:
    rng = np.random.default_rng(0)
    score = np.round(rng.random(300), 2)
    truth = rng.random(300) < score**2
    chosen = thresholds.choose(truth, score)
    assert chosen is not None
    best = thresholds.rates(truth, score, chosen)["f1"]
    tried = [thresholds.rates(truth, score, t)["f1"] for t in np.unique(score)]
    assert best == pytest.approx(max(tried))


def test_where_nobody_did_it_there_is_no_threshold_and_no_rate() -> None:
    none = np.zeros(5, bool)
    assert thresholds.choose(none, np.arange(5.0)) is None
    assert all(np.isnan(v) for v in thresholds.rates(none, np.arange(5.0), None).values())


def test_the_threshold_is_chosen_on_an_earlier_window_that_had_ended() -> None:
    found = ask().runs[0]["classification"]
    assert found["task"] == "active"
    assert found["validation"]["as_of"] == "1970-05-12T00:00:00Z"  # 30 days before
    assert found["validation"]["users"] > found["validation"]["positive"] > 0
    # as anybody would who stands at that cut-off
    past = Past.of(History.of(LOG, FOLD), AS_OF, "user-day")
    then = Validation.before(past, 30, "buyers")
    assert not isinstance(then, str)
    said = BASELINES["pareto_gg"](then.past, [30])[0]
    rows = np.flatnonzero(then.population)
    assert found["threshold"] == thresholds.choose(
        then.came.rows(rows).active, said.rows(rows).activity
    )


def test_what_happens_in_the_judged_window_moves_no_threshold() -> None:
    other = []
    for partition, batch in LOG:
        events = batch.events.copy()
        events["value_micro"][batch.log_ms >= AS_OF] *= 7
        other.append((partition, replace(batch, events=events)))
    question = Question((AS_OF,), (30,), ("pareto_gg", "prior"), task=Task(40.0), draws=20)
    a, b = (evaluate(log, question, FeatureSettings(), ["events"]) for log in (LOG, other))
    for x, y in zip(a.runs, b.runs, strict=True):
        assert x["classification"]["threshold"] == y["classification"]["threshold"] is not None
        assert x["metrics"]["recall"] != y["metrics"]["recall"]


def test_an_amount_asks_for_users_worth_so_much() -> None:
    found = ask(task=Task(40.0))
    assert found.runs[0]["classification"]["task"] == "value >= 40"
    one = found.scored[0]
    truth = one.actual >= 40
    said = one.forecast.expected >= found.runs[0]["classification"]["threshold"]
    assert found.runs[0]["metrics"]["precision"] == pytest.approx((truth & said).sum() / said.sum())


def test_without_an_earlier_window_the_rates_are_null_and_the_reason_said() -> None:
    early = START // DAY * DAY + 20 * DAY
    run = ask(as_of_ms=(early,)).runs[0]
    assert run["metrics"]["f1"] is None and run["classification"]["threshold"] is None
    assert "no buyers were known" in run["classification"]["reason"]
    assert run["metrics"]["ngini"] is not None


# ── targeting ────────────────────────────────────────────────────────────────────────────────


def browsing() -> History:
    """Ada views twice and carts the second; bob views and comes back an hour later."""
    half = PATIENCE_MS // 2
    rows = [
        (0, 0, Kind.BROWSE),
        (0, half, Kind.BROWSE),
        (0, 2 * half, Kind.INTERACTION),
        (0, 3 * half, Kind.INTERACTION),
        (1, 0, Kind.BROWSE),
        (1, 4 * half, Kind.INTERACTION),
        (2, 0, Kind.BROWSE),
        (2, 0, Kind.PURCHASE),
    ]
    user, time_ms, kind = (np.array(column) for column in zip(*rows, strict=True))
    value = np.where(kind == Kind.PURCHASE, 5.0, 0.0)
    names = {"ada": 0, "bob": 1, "cy": 2}
    return History(names, user, time_ms, time_ms, value, kind.astype(np.uint8))


def test_a_view_is_clicked_where_the_next_thing_soon_after_is_an_act() -> None:
    clicks = Clicks.of(browsing(), 0, DAY)
    assert clicks.reason is None
    assert clicks.viewed.tolist() == [2, 1, 1]
    assert clicks.clicked.tolist() == [1, 0, 1]


def test_clicks_are_counted_within_the_window_only() -> None:
    clicks = Clicks.of(browsing(), 0, PATIENCE_MS)  # ada's cart is at its end, not in it
    assert clicks.reason == "the log holds no interaction in the window"
    assert "no browse" in str(Clicks.of(browsing(), DAY, 2 * DAY).reason)


def test_targeted_users_are_the_first_by_value_and_ties_are_broken_by_activity() -> None:
    said = Forecast(np.array([1.0, 1.0, 1.0, 5.0]), np.array([0.1, 0.3, 0.2, 0.0]))
    assert targeted(said, 0.5).tolist() == [False, True, False, True]
    assert targeted(said, 0.01).tolist() == [False, False, False, True]  # at least one


def test_rates_of_targeted_users_are_those_of_their_rows() -> None:
    said = Forecast(np.array([3.0, 2.0, 1.0]))
    active = np.array([True, False, True])
    found = targeting(said, active, 1 / 3, Clicks.of(browsing(), 0, DAY), np.arange(3))
    assert found["targeted"] == {"users": 1, "conversion": 1.0, "views": 2, "click_through": 0.5}
    assert found["untargeted"] == {"users": 2, "conversion": 0.5, "views": 2, "click_through": 0.5}


def test_a_log_of_orders_alone_has_no_click_through_and_says_why() -> None:
    found = ask().runs[0]["targeting"]
    assert found["targeted"]["click_through"] is None
    assert found["click_through_reason"] == "the log holds no browse in the window"
    assert found["targeted"]["conversion"] > found["untargeted"]["conversion"]


# ── groups ───────────────────────────────────────────────────────────────────────────────────


def test_tenure_and_evidence_part_the_population() -> None:
    past = Past.of(History.of(LOG, FOLD), AS_OF, "user-day")
    found = list(groups(past, "buyers"))
    for by in ("tenure", "evidence"):
        parts = np.sum([group.at for group in found if group.by == by], axis=0)
        assert (parts == (past.seen & past.buyers)).all(), by
    named = {group.name: group.at for group in found if group.by == "population"}
    assert (named["all"] == named["buyers"] | named["prospects"]).all()


def test_evidence_is_what_the_document_says() -> None:
    days = np.array([0, 1, 2, 99, 50, 60, 95])
    user = np.array([0, 0, 0, 1, 2, 2, 3])
    value = np.array([5.0, 5.0, 5.0, 5.0, 0.0, 0.0, -5.0])
    history = History({"a": 0, "b": 1, "c": 2, "d": 3}, user, days * DAY, days * DAY, value)
    found = {
        g.name: np.flatnonzero(g.at).tolist()
        for g in groups(Past.of(history, 100 * DAY, "user-day"), "all")
        if g.by == "evidence"
    }
    assert found == {"enough": [0], "thin": [1], "cold": [2, 3]}


def test_metrics_of_the_population_s_group_are_those_of_the_run() -> None:
    run = ask().runs[0]
    mine = next(g for g in run["groups"] if g["group"] == "buyers")
    assert mine["users"] == run["users"]
    for name, value in mine["metrics"].items():
        assert value == run["metrics"][name], name


# ── what is pooled ───────────────────────────────────────────────────────────────────────────


def test_pooled_windows_of_one_user_are_no_independent_evidence() -> None:
    """Through the whole evaluation: the same window twice is no more evidence than once."""
    again = ask(models=("pareto_gg", "past_spend"), draws=100)
    one = again.scored
    parts = [Part(one[0].actual, one[0].user, {s.label: s.forecast.expected for s in one})]
    once, twice = (bootstrap(parts * n, ("ngini", "mae"), 100) for n in (1, 2))
    for metric in ("ngini", "mae"):
        a = once.difference("pareto_gg", "past_spend", metric)
        b = twice.difference("pareto_gg", "past_spend", metric)
        assert a == pytest.approx(b)


def test_a_comparison_of_several_cutoffs_draws_each_user_with_all_of_his_windows() -> None:
    moments = (AS_OF - 30 * DAY, AS_OF)
    found = ask(models=("pareto_gg", "past_spend"), as_of_ms=moments, draws=60)
    a = [s for s in found.scored if s.model == "pareto_gg"]
    b = [s for s in found.scored if s.model == "past_spend"]
    shared = np.intersect1d(a[0].user, a[1].user)
    assert len(shared) > 100
    by_hand = paired_bootstrap(
        "ngini",
        np.concatenate([s.actual for s in a]),
        np.concatenate([s.forecast.expected for s in a]),
        np.concatenate([s.forecast.expected for s in b]),
        np.concatenate([s.user for s in a]),
        np.repeat([0, 1], [len(s.user) for s in a]),
        draws=60,
    )
    row = next(c for c in found.comparisons if c["as_of"] == "pooled" and c["metric"] == "ngini")
    assert (row["delta"], row["low"], row["high"]) == pytest.approx(by_hand)


def test_intervals_hold_the_metric_and_pooled_is_the_mean() -> None:
    moments = (AS_OF - 30 * DAY, AS_OF)
    found = ask(as_of_ms=moments, models=("prior", "past_spend"), draws=100)
    for run in [*found.runs, *found.pooled]:
        for metric, (low, high) in run["intervals"].items():
            assert low <= run["metrics"][metric] <= high, metric
    for row in found.pooled:
        mine = [run for run in found.runs if run["model"] == row["model"]]
        assert row["cutoffs"] == 2
        for name in ("ngini", "auc", "mae", "f1"):
            mean = np.mean([run["metrics"][name] for run in mine])
            assert row["metrics"][name] == pytest.approx(mean)


# ── figures, and what may be known ───────────────────────────────────────────────────────────


def test_calibration_error_is_nil_for_the_true_probability_and_grows_with_the_lie() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    active = rng.random(20_000) < p
    assert metrics.ece(active, p) < 0.015
    assert metrics.ece(active, np.minimum(p + 0.2, 1)) > metrics.ece(active, p) + 0.1


def test_the_gain_curve_rises_from_nothing_to_all_and_its_area_is_the_gini() -> None:
    rng = np.random.default_rng(0)
    came: Values = rng.lognormal(size=1000)
    said: Values = came * rng.lognormal(size=1000)
    curve = figures.gain(came, said)
    assert curve[0] == 0 and curve[-1] == pytest.approx(1)
    assert all(a <= b for a, b in pairwise(curve.tolist()))
    area = float(np.mean((curve[1:] + curve[:-1]) / 2))
    assert 2 * area - 1 == pytest.approx(metrics.Gain(came, said).gini(), abs=2e-3)


def test_a_late_arrival_is_no_part_of_the_past_of_anybody() -> None:
    """An order before the cut-off that reached the log after it makes no buyer."""
    none, one = np.zeros(1, np.int64), np.ones(1)
    history = History({"ada": 0}, none, none + DAY, none + 9 * DAY, one)
    assert not Past.of(history, 5 * DAY, "user-day").buyers[0]
    assert Past.of(history, 10 * DAY, "user-day").buyers[0]
