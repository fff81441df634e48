"""Tuning: resumable, repeatable, and blind to what it may not see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is in the extra `train`")
optuna = pytest.importorskip("optuna", reason="optuna is in the extra `train`")

from featurestore.settings import FeatureSettings  # noqa: E402
from scoring import tuning  # noqa: E402
from scoring.errors import ScoringError, TooLittleData  # noqa: E402
from scoring.examples import Log  # noqa: E402
from scoring.settings import ModelSettings, TrainingSettings  # noqa: E402
from scoring.tuning import Dimension, Task, Tuned, prepare, snippet, tune  # noqa: E402
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
    return tune(task, journal, trials=trials, base=BASE, seed=seed, space=SPACE)


def told(result: Tuned) -> list[tuple[object, ...]]:
    return [(one.number, one.ngini, one.settings) for one in result.trials]


def test_a_stopped_search_goes_on_to_what_an_unbroken_one_finds(task: Task, tmp_path: Path) -> None:
    whole = tuned(task, tmp_path / "whole", 4)
    first = tuned(task, tmp_path / "parts", 2)
    assert len(first.trials) == 2
    parts = tuned(task, tmp_path / "parts", 4)
    assert told(parts) == told(whole)
    assert (parts.delta, parts.low, parts.high) == (whole.delta, whole.low, whole.high)
    assert whole.trials[0].settings == BASE
    assert whole.default.number == 0
    assert whole.best.ngini is not None
    assert whole.default.ngini is not None
    assert whole.delta == pytest.approx(whole.best.ngini - whole.default.ngini)
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
            patch.setattr("scoring.tuning.expected", interrupted)
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


def test_training_labels_end_before_the_first_validation_cutoff(task: Task) -> None:
    first = task.judge.cutoffs_ms[task.judge.window].min()
    reach = np.array(task.train.horizons_s) * 1000
    ends = task.train.cutoffs_ms[task.train.window][:, None] + reach
    assert (ends[task.train.mask] <= first).all()
    assert task.train.mask[:, task.column].any()
    assert task.judge.mask[:, task.column].all()
    assert task.train.position.max() > 0
    lengths = np.diff(task.train.starts)
    assert (task.train.position <= lengths[task.train.sequence]).all()


def test_a_hopeless_trial_is_pruned(task: Task, tmp_path: Path) -> None:
    space = (Dimension("rate", low=1e-7, high=2e-6, log=True), Dimension("width", choices=(2, 8)))
    base = BASE.model_copy(update={"epochs": 6, "rate": 2e-2})
    done = tune(task, tmp_path / "journal", trials=6, base=base, space=space)
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
    with pytest.raises(ScoringError, match="in another space"):
        tune(task, journal, trials=1, base=BASE, space=SPACE[:1])
    assert journal.read_bytes().startswith(before)
    assert len(tuned(task, journal, 1).trials) == 1


def test_a_damaged_journal_is_refused_and_a_torn_one_mended(task: Task, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    whole = tuned(task, journal, 1)
    kept = journal.read_bytes()
    journal.write_bytes(kept + b'{"op_code":5,"wor')  # a process died while it wrote
    assert told(tuned(task, journal, 1)) == told(whole)
    journal.write_bytes(kept + b"broken\nbroken\n")
    with pytest.raises(ScoringError, match="cannot be read"):
        tuned(task, journal, 1)
    for foreign in (b'{"user_id": "ada"}\n', b"a,b\n1,2\n", b"17\n"):
        journal.write_bytes(foreign)
        with pytest.raises(ScoringError, match="not a journal of tune"):
            tuned(task, journal, 1)
        assert journal.read_bytes() == foreign
    with pytest.raises(ScoringError, match="cannot write the journal"):
        tuned(task, tmp_path / "nowhere" / "journal", 1)


def test_what_cannot_be_tuned_says_why() -> None:
    def refused(log: Log, until_ms: int | None = None) -> str:
        kept = list(log)
        with pytest.raises(TooLittleData) as found:
            prepare(lambda: kept, MODEL, FeatureSettings(), ["s0"], until_ms)
        return str(found.value)

    user, time_ms, micro = shop(60, 240)
    assert "check --until" in refused(log(), START_MS)
    assert "no cut-off" in refused(batches(*shop(60, 9)))
    assert "training cut-off" in refused(batches(*shop(60, 20)))
    assert "no positive value" in refused(batches(user, time_ms, -np.abs(micro)))


def test_the_settings_in_force_are_part_of_every_space() -> None:
    assert Dimension("width", choices=(2, 4)).holding(3).choices == (2, 4, 3)
    wider = Dimension("decay", low=1e-4, high=0.3, log=True).holding(0.0)
    assert (wider.low, wider.high, wider.log) == (0.0, 0.3, False)
    assert snippet({}) == ""
