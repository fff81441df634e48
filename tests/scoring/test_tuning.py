"""Tuning: resumable, repeatable, and blind to what it may not see."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is in the extra `train`")
optuna = pytest.importorskip("optuna", reason="optuna is in the extra `train`")

from featurestore.settings import FeatureSettings  # noqa: E402
from scoring.errors import ScoringError, TooLittleData  # noqa: E402
from scoring.judging.metrics import ngini  # noqa: E402
from scoring.retraining import space as whole  # noqa: E402
from scoring.retraining import tuning  # noqa: E402
from scoring.retraining.journal import opened  # noqa: E402
from scoring.retraining.settings import RetrainSettings  # noqa: E402
from scoring.retraining.space import Dimension  # noqa: E402
from scoring.retraining.task import Task, View, kept_view, prepare  # noqa: E402
from scoring.retraining.tuning import Tuned, snippet, tune  # noqa: E402
from scoring.settings import ModelSettings, TrainingSettings  # noqa: E402
from scoring.training import loop  # noqa: E402
from scoring.training.examples import Log  # noqa: E402
from scoring.training.recipes import expected  # noqa: E402
from scoring.training.splits import newest  # noqa: E402
from scoring.training.trainable import teacher_of  # noqa: E402
from tests.scoring.shoplog import DAY_MS, START_MS, batches, shop  # noqa: E402

BASE = TrainingSettings(width=4, epochs=4, users_per_batch=128, rate=5e-3, least_orders=50)
SPACE = (
    Dimension("width", choices=(2, 4, 8)),
    Dimension("rate", low=1e-5, high=2e-2, log=True),
    Dimension("dropout", low=0.0, high=0.5),
)
MODEL = ModelSettings(horizons_days=(7, 30), headline="d30")
UNTIL_MS = START_MS + 200 * DAY_MS


def log(later: float = 1.0, users: int = 400) -> Log:
    """A shop whose orders from UNTIL_MS on are `later` times as large, and of other users."""
    user, time_ms, micro = shop(users, 240)
    after = time_ms >= UNTIL_MS
    user = np.where(after & (later != 1), user + 10_000, user)
    return batches(user, time_ms, np.where(after, np.int64(later * 1e6) * (micro // 10**6), micro))


def prepared(later: float = 1.0, until_ms: int | None = UNTIL_MS) -> Task:
    return prepare(lambda: log(later), MODEL, FeatureSettings(), ["s0"], until_ms)


@pytest.fixture(scope="module")
def task() -> Task:
    return prepared()


def tuned(task: Task, journal: Path, trials: int, seed: int = 0) -> Tuned:
    with opened(journal) as held:
        return tune(task, held, trials=trials, base=BASE, seed=seed, space=SPACE)


def told(result: Tuned) -> list[tuple[object, ...]]:
    return [(one.number, one.ngini, one.settings) for one in result.trials]


def test_a_stopped_search_goes_on_to_what_an_unbroken_one_finds(task: Task, tmp_path: Path) -> None:
    whole = tuned(task, tmp_path / "whole", 4)
    first = tuned(task, tmp_path / "parts", 2)
    assert len(first.trials) == 2
    parts = tuned(task, tmp_path / "parts", 4)
    assert told(parts) == told(whole)
    assert parts.gain == whole.gain
    assert whole.trials[0].settings == BASE
    assert whole.default.number == 0
    assert whole.best.ngini is not None
    assert whole.default.ngini is not None
    assert whole.gain is not None
    assert whole.gain.delta == pytest.approx(whole.best.ngini - whole.default.ngini)
    changed = {name: getattr(whole.best.settings, name) for name in whole.settings}
    assert BASE.model_copy(update=changed) == whole.best.settings
    # nothing is left to do, and nothing is done
    assert told(tuned(task, tmp_path / "whole", 3)) == told(whole)
    assert told(tuned(task, tmp_path / "other", 2, seed=1))[1] != told(whole)[1]


def test_an_interrupted_trial_is_tried_again(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tuned(task, tmp_path / "whole", 2)
    journal = tmp_path / "journal"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for done in (0, 1):
        with monkeypatch.context() as patch:
            patch.setattr("scoring.retraining.tuning.expected", interrupted)
            with pytest.raises(KeyboardInterrupt):
                tuned(task, journal, done + 1)
        found = tuned(task, journal, done + 1)
    assert [row[1:] for row in told(found)] == [row[1:] for row in told(whole)]
    assert found.default.settings == BASE


def test_nothing_from_until_on_is_looked_at(task: Task) -> None:
    other = prepared(later=7.0)
    assert other.log == task.log
    assert other.train.users == task.train.users
    for a, b in ((task.train, other.train), (task.judge, other.judge)):
        for name in ("features", "tokens", "value", "mask", "window", "user"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    # and the change is one that would be seen
    seen = prepared(until_ms=None)
    assert seen.log not in (task.log, prepared(later=7.0, until_ms=None).log)
    assert seen.judge.clock_ms > UNTIL_MS >= task.judge.clock_ms


@pytest.mark.parametrize("late", [timedelta(hours=72), timedelta(days=12)])
def test_training_labels_are_mature_by_the_first_validation_cutoff(late: timedelta) -> None:
    settings = FeatureSettings(lateness=late)
    task = prepare(lambda: log(), MODEL, settings, ["s0"], UNTIL_MS)
    late_ms = late // timedelta(milliseconds=1)
    first = task.judge.cutoffs_ms[task.judge.window].min()
    reach = np.array(task.train.horizons_s) * 1000
    ends = task.train.cutoffs_ms[task.train.window][:, None] + reach
    assert (ends[task.train.mask] + late_ms <= first).all()
    assert (ends + late_ms > first).any()
    assert task.train.mask[:, task.column].any()
    assert task.judge.mask[:, task.column].all()
    assert task.train.position.max() > 0
    lengths = np.diff(task.train.starts)
    assert (task.train.position <= lengths[task.train.sequence]).all()


def test_a_hopeless_trial_is_pruned(task: Task, tmp_path: Path) -> None:
    space = (Dimension("rate", low=1e-7, high=2e-6, log=True), Dimension("width", choices=(2, 8)))
    base = BASE.model_copy(update={"epochs": 6, "rate": 2e-2})
    with opened(tmp_path / "journal") as held:
        done = tune(task, held, trials=6, base=base, space=space)
    pruned = [one.number for one in done.trials if one.ngini is None]
    assert pruned
    assert min(pruned) >= tuning.STARTS
    assert done.trials[0].ngini is not None
    assert done.best.number not in pruned


def test_a_journal_of_something_else_is_refused(task: Task, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    tuned(task, journal, 1)
    before = journal.read_bytes()
    with pytest.raises(ScoringError, match="of another log: name another --journal"):
        tuned(prepared(until_ms=None), journal, 1)
    with pytest.raises(ScoringError, match="with other settings"):
        tuned(task, journal, 1, seed=1)
    with opened(journal) as held, pytest.raises(ScoringError, match="in another space"):
        tune(task, held, trials=1, base=BASE, space=SPACE[:1])
    assert journal.read_bytes().startswith(before)
    assert len(tuned(task, journal, 1).trials) == 1


def test_a_damaged_journal_is_refused_and_a_torn_one_mended(task: Task, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    tuned(task, journal, 1)
    kept = journal.read_bytes()
    journal.write_bytes(kept + b'{"op_code":5,"wor')  # a process died while it wrote
    whole = tuned(task, journal, 2)
    assert len(whole.trials) == 2
    assert told(tuned(task, journal, 2)) == told(whole)  # what was written after it can be read
    journal.write_bytes(kept + b"broken\nbroken\n")
    with pytest.raises(ScoringError, match="cannot be read"):
        tuned(task, journal, 1)
    mine = kept.partition(b"\n")[0]
    for cut in (1, 10, 26, 27, 40, len(mine) - 30, len(mine) - 1, len(mine)):
        journal.write_bytes(mine[:cut])  # the first line is cut: nothing was begun
        with opened(journal) as held:
            assert (held.view, held.study.trials) == (None, [])
    for foreign in (
        b'{"user_id": "ada"}\n',
        b"a,b\n1,2\n",
        b"17\n",
        b"{\n",
        b"17",
        b'{"op_code":0,"user":"ada',
        mine[:60] + b'","study_name":"other',
    ):
        journal.write_bytes(foreign)
        with pytest.raises(ScoringError, match="not a journal of tune"):
            tuned(task, journal, 1)
        assert journal.read_bytes() == foreign
    with pytest.raises(ScoringError, match="cannot write the journal"):
        tuned(task, tmp_path / "nowhere" / "journal", 1)


def test_one_process_at_a_time_writes_a_journal(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with opened(journal), pytest.raises(ScoringError, match="another tune writes"), opened(journal):
        pass
    with opened(journal):
        pass


def test_what_a_killed_search_left_beside_its_journal_holds_nobody_up(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    left = tmp_path / "journal.lock"  # Optuna's own, waited for and taken away after 30 s
    left.symlink_to(journal)
    with opened(journal) as held:
        held.hold({"log": "a", "settings": "b", "space": "c"}, {"until_ms": 1})
    assert left.is_symlink()


def grown(shown: Callable[[], Log], later: Callable[[], Log]) -> Callable[[], Log]:
    """A live log: shown once as it was, from then on with what has come since."""
    calls = iter([shown])
    return lambda: next(calls, later)()


def test_a_log_that_grows_is_the_same_log_when_gone_on_with(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    user, time_ms, micro = shop(400, 240)
    before = time_ms < UNTIL_MS
    few = before & (user < 300)  # the scan has gone past a partition that grows meanwhile

    def shown(keep: np.ndarray) -> Log:
        return batches(user[keep], time_ms[keep], micro[keep])

    def some(kept: View | None, log: Callable[[], Log]) -> Task:
        drawn = RetrainSettings(most_users=200)
        return prepare(log, MODEL, FeatureSettings(), ["s0"], None, kept, drawn)

    task = some(None, grown(lambda: shown(few), lambda: shown(before)))
    assert task.view.until_ms == int(time_ms[few].max()) + 1
    tuned(task, journal, 1)
    everything = np.ones(len(time_ms), bool)
    with opened(journal) as held:
        kept = kept_view(held, None)
        assert kept == task.view == kept_view(held, task.view.until_ms)
        with pytest.raises(ScoringError, match=r"search up to 1997-.*name another --journal"):
            kept_view(held, UNTIL_MS + 1)
    again = some(kept, lambda: shown(everything))
    assert again.log == task.log
    assert len(tuned(again, journal, 2).trials) == 2
    # and without the kept view it would be another
    assert some(None, lambda: shown(everything)).log != task.log


def test_an_end_that_is_still_to_come_is_the_end_of_the_log_at_the_first_call() -> None:
    def far(days: int, kept: View | None = None) -> Task:
        user, time_ms, micro = shop(200, 240)
        keep = time_ms < START_MS + days * DAY_MS
        log = list(batches(user[keep], time_ms[keep], micro[keep]))
        settings = FeatureSettings()
        return prepare(lambda: log, MODEL, settings, ["s0"], START_MS + 999 * DAY_MS, kept)

    first = far(200)
    assert far(240, first.view).log == first.log != far(240).log


def test_settings_that_do_not_train_say_so(task: Task, tmp_path: Path) -> None:
    hopeless = BASE.model_copy(update={"rate": 1e6})
    with (
        opened(tmp_path / "one") as held,
        pytest.raises(ScoringError, match=r"do not train.*correct training.rate \(1e\+06\)"),
    ):
        tune(task, held, trials=1, base=hopeless, space=SPACE[:1])
    # others that do are no gain over what is unknown
    space = (Dimension("rate", choices=(5e-3, 6e-3)),)
    with opened(tmp_path / "more") as held:
        found = tune(task, held, trials=4, base=hopeless, space=space)
    assert found.default.ngini is None
    assert found.best.ngini is not None
    assert found.gain is None
    assert not found.better
    assert found.as_json()["gain"] is None
    assert found.settings == {"rate": found.best.settings.rate}


def test_what_the_others_are_held_against_is_never_pruned(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "STARTS", 0)
    monkeypatch.setattr(tuning, "WARM_UP", 0)
    slow = BASE.model_copy(update={"rate": 1e-7})  # worse than whatever else is tried
    space = (Dimension("rate", choices=(2e-2, 1e-2)),)

    def search(trials: int) -> Tuned:
        with opened(tmp_path / "journal") as held:
            return tune(task, held, trials=trials, base=slow, space=space)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("scoring.retraining.tuning.expected", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search(1)
    found = search(3)
    assert found.trials[0] == found.default
    assert found.default.ngini is not None
    assert found.default.settings == slow


def test_a_log_too_short_for_the_headline_is_judged_on_a_shorter_horizon() -> None:
    def horizon_days(days: int) -> int:
        rows = shop(200, days)
        return prepare(lambda: batches(*rows), MODEL, FeatureSettings(), ["s0"]).horizon_days

    assert horizon_days(50) == 7
    assert horizon_days(120) == 30


def test_what_cannot_be_tuned_says_why() -> None:
    def refused(log: Log, until_ms: int | None = None, model: ModelSettings = MODEL) -> str:
        kept = list(log)
        with pytest.raises(TooLittleData) as found:
            prepare(lambda: kept, model, FeatureSettings(), ["s0"], until_ms)
        return str(found.value)

    user, time_ms, micro = shop(60, 240)
    assert "check --until" in refused(log(), START_MS)
    assert "no cut-off" in refused(batches(*shop(60, 9)))
    # As retrain: a horizon that nobody teaches.
    assert "there are 0 for 30 days: give a longer log" in refused(batches(*shop(60, 20)))
    week = ModelSettings(horizons_days=(7,), headline="d7")
    assert "training cut-off" in refused(batches(*shop(60, 20)), model=week)
    assert "amounts are refunds" in refused(batches(user, time_ms, -np.abs(micro)))
    assert "of one user alone" in refused(batches(user * 0, time_ms, micro))
    assert "have the same value" in refused(batches(user, time_ms, micro * 0 + 10**7))
    assert "check SRC" in refused([])


def test_flat_prices_are_tuned_where_the_settings_say_that_they_are_right() -> None:
    user, time_ms, micro = shop(200, 120)
    flat = list(batches(user, time_ms, micro * 0 + 10**7))
    settings = RetrainSettings(flat_prices=True)
    task = prepare(lambda: flat, MODEL, FeatureSettings(), ["s0"], settings=settings)
    assert len(task.judge)


def test_the_teachers_in_force_teach_every_trial(task: Task, tmp_path: Path) -> None:
    how = BASE.model_copy(update={"teachers": ("linear",), "teacher_weight": 0.9})
    space = (Dimension("width", choices=(4,)),)

    def first(base: TrainingSettings, journal: str) -> float | None:
        with opened(tmp_path / journal) as held:
            return tune(task, held, trials=1, base=base, space=space).default.ngini

    teacher = teacher_of(task.train, how, None)
    trained = loop.train(task.train, how, teacher=teacher)
    made = loop.generation(trained, task.train, calibrate_on=newest(task.train, 3))
    rows, said = task.judge, expected(made, task.judge)[0][:, task.column]
    by_hand = [
        ngini(rows.value[rows.window == w, task.column], said[rows.window == w])
        for w in np.unique(rows.window)
    ]
    taught = first(how, "taught")
    assert taught == pytest.approx(np.mean(by_hand), abs=1e-12)
    assert taught != first(BASE, "alone")


def test_only_what_the_family_takes_is_searched(task: Task, tmp_path: Path) -> None:
    tried = {}
    for name in ("mingru", "dnn"):
        how = BASE.model_copy(update={"family": name, "width": 32, "epochs": 1})
        with opened(tmp_path / name) as held:
            tune(task, held, trials=1, base=how)
            tried[name] = {*held.study.trials[0].params}
    assert tried["mingru"] == {one.name for one in whole.SPACE}
    assert tried["mingru"] - tried["dnn"] == {"width", "event_dropout", "time_jitter_days"}


def test_the_augmentation_is_searched_from_none_on() -> None:
    asked = {one.name: one.choices for one in whole.SPACE if one.choices}
    for name in ("event_dropout", "time_jitter_days", "cutoff_dropout"):
        assert asked[name][0] == getattr(BASE, name) == 0.0
        assert len(asked[name]) > 1


def test_the_settings_in_force_are_part_of_every_space() -> None:
    assert Dimension("width", choices=(2, 4)).holding(3).choices == (2, 4, 3)
    wider = Dimension("decay", low=1e-4, high=0.3, log=True).holding(0.0)
    assert (wider.low, wider.high, wider.log) == (0.0, 0.3, False)
    assert snippet({}) == ""
