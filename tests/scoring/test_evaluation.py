import json
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from numpy.typing import NDArray

from featurestore.columns import EVENT, Erase, EventBatch, Kind
from featurestore.fold_settings import FoldSettings
from featurestore.settings import FeatureSettings
from scoring.generation import prior
from scoring.judging.baselines.fitted import BASELINES, SECOND_OPINIONS
from scoring.judging.contenders import DAILY
from scoring.judging.evaluation import (
    BadQuestion,
    Question,
    Report,
    choose_cutoffs,
    evaluate,
    model_names,
    score,
)
from scoring.judging.history import History, before
from scoring.settings import ModelSettings
from scoring.training.examples import build
from scoring.training.trainable import TRAINED, Ask, Made
from tests.scoring.logs import DAY, shoppers

Log = list[tuple[int, EventBatch]]
LOG = shoppers()
START = min(int(batch.events["time_ms"].min()) for _, batch in LOG)
AS_OF = START // DAY * DAY + 150 * DAY
FOLD = FoldSettings.of(FeatureSettings(), ["events"])
FAST = ("prior", "linear", *BASELINES)


def ask(log: Log, **said: object) -> Report:
    question = Question((AS_OF,), (30,), ("prior",), draws=20)
    return evaluate(log, replace(question, **said), FeatureSettings(), ["events"])  # type: ignore[arg-type]


def lookers(users: int) -> EventBatch:
    """Users who view a page before the cut-off, and order after it."""
    events = np.zeros(2 * users, EVENT)
    events["time_ms"] = np.repeat([AS_OF - DAY, AS_OF + DAY], users)
    events["record_ms"] = events["time_ms"]
    events["id_hi"] = (1 << 40) + np.arange(2 * users)
    events["kind"] = np.repeat([Kind.BROWSE, Kind.PURCHASE], users)
    events["value_micro"] = np.repeat([0, 5_000_000], users)
    names = [f"looker{n}" for n in range(users)]
    user = np.tile(np.arange(users, dtype=np.int32), 2)
    return EventBatch(names, user, events, np.arange(2 * users), events["time_ms"].copy())


def scrambled_after(log: Log, as_of_ms: int) -> Log:
    """The same log up to a cut-off, another future."""
    out = []
    for partition, batch in log:
        events = batch.events.copy()
        later = batch.log_ms >= as_of_ms
        events["value_micro"][later] = events["value_micro"][later][::-1] * 3
        out.append((partition, replace(batch, events=events)))
    return out


def predictions(log: Log, models: tuple[str, ...]) -> dict[str, dict[str, float | None]]:
    return {run["model"]: run["metrics"] for run in ask(log, models=models).runs}


def test_json_has_the_promised_shape() -> None:
    report = json.loads(json.dumps(ask(LOG, models=FAST).as_json()))
    assert [run["model"] for run in report["runs"]] == list(FAST)
    wanted = {"as_of", "horizon_days", "model", "population", "users", "n_train", "seconds"}
    metrics = {"ngini", "spearman", "top10", "top20", "dmape", "bias", "mae", "rmse", "bias_net"}
    metrics |= {"auc", "brier", "ece", "cover80", "accuracy", "precision", "recall", "f1"}
    for run in report["runs"]:
        assert wanted <= set(run)
        assert set(run["metrics"]) == metrics
        assert (run["cost"] is not None) == (run["model"] in TRAINED)
        assert {"classification", "targeting", "groups", "intervals"} <= set(run)
        assert datetime.fromisoformat(run["as_of"]).timestamp() == AS_OF / 1000
    assert {tuple(sorted(c)) for c in report["comparisons"]} == {
        tuple(sorted(("a", "b", "as_of", "horizon_days", "metric", "delta", "low", "high")))
    }
    assert {c["a"] for c in report["comparisons"]} == {"prior"}
    assert {c["b"] for c in report["comparisons"]} == {*FAST} - {"prior"}


def test_a_threshold_is_chosen_by_the_net_that_has_not_seen_who_chooses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    linear, asked = TRAINED["linear"], []

    def make(ask: Ask) -> Made:
        made = linear.make(ask)
        return Made(made.whole, lambda: asked.append("apart") or made.apart())  # type: ignore[func-returns-value]

    monkeypatch.setitem(TRAINED, "mingru", replace(linear, make=make, holds_out=True))
    monkeypatch.setitem(TRAINED, "linear", replace(linear, make=make))
    runs = ask(LOG, models=("mingru", "linear")).runs
    held = {run["model"]: run["classification"]["validation"]["held_out"] for run in runs}
    assert held == {"mingru": True, "linear": False} and asked == ["apart"]
    # Among those held out are fewer, and what they are told is another model's.
    users = {run["model"]: run["classification"]["validation"]["users"] for run in runs}
    assert 0 < users["mingru"] < users["linear"]


def test_nothing_after_the_cutoff_moves_a_value() -> None:
    """The sum of all values is bias x actual: it must not depend on the future."""
    history, other = History.of(LOG, FOLD), History.of(scrambled_after(LOG, AS_OF), FOLD)
    end = AS_OF + 30 * DAY
    actual = history.window(AS_OF, end, "user-day").value.sum()
    changed = other.window(AS_OF, end, "user-day").value.sum()
    assert actual != changed
    here, there = predictions(LOG, FAST), predictions(scrambled_after(LOG, AS_OF), FAST)
    for model in FAST:
        a, b = here[model]["bias"], there[model]["bias"]
        assert a is not None
        assert b is not None
        assert a * actual == pytest.approx(b * changed, rel=1e-9), model


def test_late_arrivals_are_unknown_before_they_arrive() -> None:
    late = shoppers(delay_ms=3 * DAY)
    known = History.of(late, FOLD).known(AS_OF)
    assert History.of(late, FOLD).time_ms[known].max() < AS_OF - 3 * DAY
    assert History.of(late, FOLD).delay_ms(AS_OF) == 3 * DAY
    kept = [batch.log_ms.max() for _, batch in before(late, AS_OF)]
    assert max(kept) < AS_OF


def test_one_record_that_is_late_by_months_makes_nobody_wait_for_labels() -> None:
    last = [i for i, (_, batch) in enumerate(LOG) if batch.log_ms.max() < AS_OF][-1]
    (_, batch) = LOG[last]
    events = batch.events.copy()
    events["time_ms"][-1] -= 140 * DAY
    log = [*LOG[:last], (0, replace(batch, events=events)), *LOG[last + 1 :]]
    assert History.of(log, FOLD).delay_ms(AS_OF) == 3 * DAY
    assert [run["model"] for run in ask(log, models=("linear", "pareto_gg")).runs]


def premature(log: Log) -> Log:
    """Each batch twice: events of tomorrow as recorded today, then the same with their time."""
    return [
        (partition, replace(batch, events=events))
        for partition, batch in log
        for events in (_ahead(batch), batch.events)
    ]


def _ahead(batch: EventBatch) -> NDArray[np.void]:
    events = batch.events.copy()
    events["time_ms"] += DAY
    return events


def test_what_is_from_the_future_of_its_record_counts_nowhere_and_uses_up_no_identity() -> None:
    history, other = History.of(LOG, FOLD), History.of(premature(LOG), FOLD)
    assert other.user.tolist() == history.user.tolist()
    assert other.time_ms.tolist() == history.time_ms.tolist()
    here, there = ask(LOG), ask(premature(LOG))
    count = sum(len(batch.user) for _, batch in LOG)
    assert not [note for note in here.notes if "left out" in note]
    assert f"left out, as a worker leaves them out: {count:,} future" in there.notes
    assert there.runs[0]["users"] == here.runs[0]["users"]
    assert there.scored[0].actual.sum() == here.scored[0].actual.sum()


@pytest.mark.parametrize("log", [LOG, premature(LOG)], ids=["in-time", "premature"])
def test_labels_equal_those_of_the_training_examples(log: Log) -> None:
    """Two independent ways to the same number."""
    horizons = (7, 30)
    rows = build(
        log,
        FeatureSettings(),
        ["events"],
        [days * DAY // 1000 for days in horizons],
        np.array([AS_OF]),
    )
    history = History.of(log, FOLD)
    at = [history.users[rows.users[u]] for u in rows.user]
    for h, days in enumerate(horizons):
        window = history.window(AS_OF, AS_OF + days * DAY, "event")
        assert window.value[at] == pytest.approx(rows.value[:, h], abs=1e-6)
        assert (window.active[at] == rows.active[:, h]).all()
    # and every user seen before the cut-off has a row
    assert sorted(at) == np.unique(history.user[history.known(AS_OF)]).tolist()


def test_populations_part_the_users() -> None:
    counts = {p: ask(LOG, population=p).runs[0]["users"] for p in ("all", "buyers")}
    assert ask(LOG).runs[0]["population"] == "buyers"
    seen = np.unique(History.of(LOG, FOLD).user[History.of(LOG, FOLD).known(AS_OF)])
    assert counts["all"] == len(seen)
    assert 0 < counts["buyers"] <= counts["all"]
    # shoppers without an order by then, who looked, and bought a day later
    log = [(1, lookers(12)), *LOG]
    assert ask(log, population="all").runs[0]["users"] == counts["all"] + 12
    found = ask(log, population="prospects").runs[0]
    assert found["users"] == 12
    by_name = {g["group"]: g["users"] for g in found["groups"] if g["by"] == "population"}
    assert by_name == {"all": counts["all"] + 12, "buyers": counts["buyers"], "prospects": 12}


def test_repeats_and_erased_users_do_not_count() -> None:
    history = History.of(LOG, FOLD)
    twice = History.of([*LOG, *LOG], FOLD)
    assert len(twice.user) == len(history.user) == twice.left_out["repeated"]
    batch = LOG[0][1]
    last = replace(batch, erases=[Erase(0, 0, int(batch.events["record_ms"].max()))])
    gone = History.of([(0, last), *LOG[1:]], FOLD)
    name = batch.users[0]
    removed = ((history.user == history.users[name]) & (history.time_ms <= last.log_ms[-1])).sum()
    assert removed > 0
    assert (
        len(gone.user) == len(history.user) - removed == len(history.user) - gone.left_out["erased"]
    )
    # What is said again after the erasure is no repeat of what is forgotten.
    events = batch.events.copy()
    events["record_ms"] = last.erases[0].record_ms + 1
    anew = History.of([(0, last), (0, replace(batch, events=events)), *LOG[1:]], FOLD)
    assert len(anew.user) == len(history.user)


def test_an_order_taken_back_the_same_day_is_none_by_day_and_one_by_event() -> None:
    none = np.zeros(2, np.int64)
    log = History({"ada": 0}, none, none, none, np.array([5.0, -5.0]))
    assert not log.window(0, DAY, "user-day").active[0]
    assert log.window(0, DAY, "event").active[0]
    assert log.window(0, DAY, "event").value[0] == 0


def test_several_cutoffs_are_pooled_and_seeds_judged_one_by_one() -> None:
    report = ask(LOG, as_of_ms=(AS_OF - 30 * DAY, AS_OF), models=("prior", "pareto_gg"), seeds=2)
    assert [(r["model"], r["seed"]) for r in report.runs] == [
        ("prior", 0),
        ("pareto_gg", None),
    ] * 2
    assert {c["as_of"] for c in report.comparisons} >= {"pooled"}
    assert len({c["as_of"] for c in report.comparisons}) == 3


def test_values_of_a_better_model_are_found_better() -> None:
    report = ask(LOG, models=("pareto_gg", "past_spend"), draws=100)
    mae = next(c for c in report.comparisons if c["metric"] == "mae")
    assert mae["high"] < 0


def test_chosen_cutoffs_end_by_the_cutoff_with_their_delay() -> None:
    made = choose_cutoffs(0, 283 * DAY, 90, 3 * DAY)
    assert (made + 93 * DAY <= 283 * DAY).all()
    assert made[0] >= 95 * DAY
    assert len(made) >= 8


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"models": ("oracle",)}, "no model is called 'oracle'"),
        ({"horizons_days": (3650,)}, "reach past the log's end"),
        ({"as_of_ms": (START - DAY,)}, "nothing had arrived before"),
        ({"models": ("linear",), "cutoffs_ms": (AS_OF,)}, "take earlier --train-cutoffs"),
        ({"population": "prospects"}, "0 prospects before .* another --population"),
    ],
)
def test_a_question_that_the_log_cannot_answer_says_what_can(
    said: dict[str, object], message: str
) -> None:
    with pytest.raises(BadQuestion, match=message):
        ask(LOG, **said)


def test_rows_are_scored_alike_in_any_chunk() -> None:
    rows = build(LOG, FeatureSettings(), ["events"], [7 * 86_400], np.array([AS_OF]))
    generation = prior(ModelSettings(horizons_days=(7,), headline="d7"))
    whole, parts = score(generation, rows), score(generation, rows, chunk=17)
    assert np.allclose(whole.expected, parts.expected, rtol=1e-5)
    assert len(whole.expected) == len(rows)


def test_every_model_is_named_and_explained() -> None:
    names = model_names()
    assert {"served", *TRAINED, *DAILY, *BASELINES, *SECOND_OPINIONS} == set(names)
    assert all(names.values())


def test_a_daily_model_knows_nothing_later_than_midnight(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a nightly job: who came after midnight has no value yet, the others that of the night."""
    monkeypatch.setitem(DAILY, "daily_prior", "prior")
    midnight = AS_OF - 90 * DAY  # when users still come
    later = midnight + DAY - 3_600_000
    night = ask(LOG, population="all", as_of_ms=(midnight,)).scored[0]
    fresh, daily = ask(
        LOG, population="all", as_of_ms=(later,), models=("prior", "daily_prior")
    ).scored
    said = dict(zip(daily.user.tolist(), daily.forecast.expected.tolist(), strict=True))
    for user, value in zip(night.user.tolist(), night.forecast.expected.tolist(), strict=True):
        assert said.pop(user) == value
    assert said  # users of that day
    assert set(said.values()) == {0.0}
    assert (fresh.forecast.expected > 0).all()
    assert (fresh.actual == daily.actual).all()


def test_a_daily_model_has_its_threshold_from_a_midnight_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Arrivals of some hours put the validation cut-off between two midnights."""
    monkeypatch.setitem(DAILY, "daily_prior", "prior")
    late = shoppers(delay_ms=5 * 3_600_000)
    fresh, daily = ask(late, models=("prior", "daily_prior")).runs
    assert fresh["classification"]["validation"] == daily["classification"]["validation"]
    assert fresh["classification"]["threshold"] is not None
    assert daily["classification"]["threshold"] is not None
    assert daily["metrics"]["f1"] == pytest.approx(fresh["metrics"]["f1"], abs=0.1)
