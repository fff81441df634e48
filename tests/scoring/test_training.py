"""Training: repeatable, calibrated, and useful on real orders."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is in the extra `train`")

from featurestore.clock import Clocks  # noqa: E402
from featurestore.columns import STEPS  # noqa: E402
from featurestore.features import FEATURES  # noqa: E402
from featurestore.fold import FoldSettings, fold  # noqa: E402
from featurestore.settings import FeatureSettings  # noqa: E402
from featurestore.state import States  # noqa: E402
from featurestore.vector import encode  # noqa: E402
from scoring import inputs  # noqa: E402
from scoring.errors import TooLittleData  # noqa: E402
from scoring.generation import Generation  # noqa: E402
from scoring.inputs import HELD_NAMES  # noqa: E402
from scoring.judging import metrics  # noqa: E402
from scoring.scorer import Scorer  # noqa: E402
from scoring.settings import ModelSettings, TrainingSettings  # noqa: E402
from scoring.training import loop, run  # noqa: E402
from scoring.training.examples import Examples, build  # noqa: E402
from scoring.training.loop import generation  # noqa: E402
from scoring.training.splits import held_out, newest  # noqa: E402
from tests.scoring.carried import carry_rows  # noqa: E402
from tests.scoring.shoplog import START_MS, batches, cdnow, cutoff_days, shop  # noqa: E402
from tests.scoring.test_scorer import live  # noqa: E402
from tests.scoring.tiny import HORIZONS_S  # noqa: E402

QUICK = TrainingSettings(epochs=6, width=8, users_per_batch=128, rate=5e-3)


@pytest.fixture(scope="module")
def examples() -> Examples:
    return build(
        batches(*shop(900, 240)),
        FeatureSettings(),
        ["s0"],
        HORIZONS_S,
        cutoff_days(range(40, 220, 15)),
        log_start_ms=START_MS,
    )


def test_the_same_examples_and_seed_give_the_same_generation(examples: Examples) -> None:
    def made(settings: TrainingSettings) -> str:
        net = loop.train(examples, settings)
        return generation(net, examples, calibrate_on=newest(examples, 3)).id

    assert made(QUICK) == made(QUICK)
    assert made(QUICK) != made(QUICK.model_copy(update={"seed": 1}))


def test_training_ranks_held_out_users_and_hits_their_level(examples: Examples) -> None:
    done: list[tuple[str, int, int]] = []
    settings = QUICK.model_copy(update={"epochs": 12})
    trained = loop.train(examples, settings, lambda *step: done.append(step))
    assert [step[1] for step in done] == list(range(1, len(trained.losses) + 1))
    assert min(after for _, after in trained.losses[1:]) < trained.losses[0][1]
    made = generation(trained, examples, unit="GBP", calibrate_on=newest(examples, 3))
    rows = examples.rows(held_out(examples, settings))
    said = made.model.predict(carry_rows(made, rows), inputs.of_rows(made, rows)[:, None])
    value, expected = rows.value[:, 2], said.expected[:, 0, 2].astype(np.float64)
    assert metrics.ngini(value, expected) > 0.5
    assert 0.7 < metrics.bias(value, expected) < 1.4
    active = said.p_active[:, 0, 2].astype(np.float64)
    assert metrics.auc(rows.active[:, 2], active) > 0.7
    assert abs(active.mean() - rows.active[:, 2].mean()) < 0.06


def test_what_serves_learns_from_everybody_for_as_long_as_held_out_users_allow(
    examples: Examples,
) -> None:
    def both(rows: Examples) -> tuple[str, str, list[tuple[str, int, int]]]:
        done: list[tuple[str, int, int]] = []
        trained = loop.train(rows, QUICK)
        whole = loop.refit(rows, trained, lambda *step: done.append(step))
        assert done == [("refit", n, trained.kept) for n in range(1, trained.kept + 1)]
        return generation(trained, rows).id, generation(whole, rows).id, done

    apart, whole, done = both(examples)
    assert 1 < len(done) <= 6
    # A label of early cut-offs of held-out users stops nothing: it is for the second net alone.
    told = examples.rows(np.arange(len(examples)))
    asides = held_out(told, QUICK) & told.mask.all(axis=1) & (told.window < 2)
    told.value[asides] += 50.0
    told.between[asides] = True
    changed = both(told)
    assert (changed[0], changed[2]) == (apart, done)
    assert changed[1] != whole != apart


def test_a_net_that_no_epoch_bettered_stays_as_it_began(examples: Examples) -> None:
    trained = loop.train(examples, QUICK.model_copy(update={"rate": 1e30}))
    assert trained.kept == 0
    assert all(torch.isfinite(p).all() for p in loop.refit(examples, trained).net.parameters())


@pytest.mark.parametrize("epochs", [1, 3, 9])
def test_a_run_of_few_steps_has_a_way_up_too(examples: Examples, epochs: int) -> None:
    fitted = examples.rows(~held_out(examples, TrainingSettings()) & examples.mask.any(1))
    a_step = -(-len(np.unique(fitted.sequence)) // max(1, 9 // epochs))
    settings = QUICK.model_copy(update={"epochs": epochs, "users_per_batch": a_step})
    trained = loop.train(examples, settings)  # nine steps: torch divided by 0
    assert np.isfinite(trained.losses).all()


def test_a_log_of_few_users_gets_its_steps_too(examples: Examples) -> None:
    fitted = examples.rows(~held_out(examples, TrainingSettings()) & examples.mask.any(1))
    users = len(np.unique(fitted.sequence))
    epochs: list[int] = []

    def stop(done: int, total: int, loss: float) -> None:
        epochs.append(total)
        raise StopIteration

    with pytest.raises(StopIteration):
        loop.train(examples, TrainingSettings(users_per_batch=-(-users // 8)), watch=stop)
    assert epochs == [run.STEPS // 8]  # of eight steps each


def test_the_manifest_says_what_was_trained_on(examples: Examples) -> None:
    trained = loop.train(examples, QUICK)
    manifest = generation(trained, examples, unit="GBP").manifest
    assert manifest.seen_types == ("purchase",)
    assert manifest.trained_until_ms == examples.clock_ms
    assert manifest.log_start_ms == examples.log_start_ms
    constant = {f.name for f in FEATURES} - set(manifest.trained_features)
    assert {"browses", "interactions", "since_browse", "category_3", "since_event"} <= constant
    assert {"orders", "since_order", "log_mean_order_value"} <= set(manifest.trained_features)


def test_immature_labels_teach_nothing(examples: Examples) -> None:
    def losses(changed: Examples) -> list[tuple[float, float]]:
        return loop.train(changed, QUICK.model_copy(update={"epochs": 2})).losses

    spoilt = examples.rows(np.arange(len(examples)))
    assert (~spoilt.mask).any()
    spoilt.value[~spoilt.mask] = 1e9
    spoilt.between[~spoilt.mask] = True
    assert losses(spoilt) == losses(examples)


def test_a_log_without_enough_orders_is_refused(examples: Examples) -> None:
    few = examples.rows(np.arange(40))
    with pytest.raises(TooLittleData, match="longer log"):
        loop.train(few, QUICK)


@pytest.fixture(scope="module")
def cdnow_generation(data_dir: Path) -> Generation:
    # protocol T: cut-off at the end of week 39, 13 weeks ahead, training labels end by then
    horizons = tuple(days * 86_400 for days in (7, 30, 91))
    user, time_ms, micro = cdnow(data_dir)
    cut = cutoff_days([273])
    settings = FeatureSettings(lateness=timedelta(0))
    known = time_ms < cut[0]
    past = build(
        batches(user[known], time_ms[known], micro[known]),
        settings,
        ["s0"],
        horizons,
        cutoff_days(range(91, 183, 13)),
        log_start_ms=START_MS,
        lateness_ms=-86_400_000,  # orders carry days: the last one known, 272, is over by the cut
    )
    assert past.mask.all()
    trained = loop.train(past, TrainingSettings(epochs=6))
    return generation(trained, past, calibrate_on=newest(past, 3))


@pytest.mark.long
def test_on_cdnow_the_exported_file_ranks_and_hits_the_level(
    cdnow_generation: Generation, data_dir: Path
) -> None:
    made = cdnow_generation
    test = build(
        batches(*cdnow(data_dir)),
        FeatureSettings(lateness=timedelta(0)),
        ["s0"],
        made.manifest.horizons_s,
        cutoff_days([273]),
        START_MS,
        lateness_ms=0,
    )
    assert len(test) == 23_570
    said = made.model.predict(carry_rows(made, test), inputs.of_rows(made, test)[:, None])
    value, expected = test.value[:, 2], said.expected[:, 0, 2].astype(np.float64)
    assert metrics.ngini(value, expected) > 0.68
    assert 0.7 < metrics.bias(value, expected) < 1.3


def test_a_topic_that_the_model_never_saw_moves_no_value(examples: Examples) -> None:
    trained = loop.train(examples, QUICK)
    made = generation(trained, examples)
    scorer = Scorer(made, ModelSettings(), FeatureSettings())
    user, time_ms, micro = shop(40, 100)
    r = np.random.default_rng(0)
    # browse and interaction between the orders, the latter stepping the carry
    other_time = START_MS + r.integers(0, 99 * 86_400_000, 900)
    kind = np.repeat(np.array([1, 0, 2], np.uint8), [len(user), 500, 400])
    with_others = list(
        batches(
            np.concatenate([user, r.integers(0, 40, 900)]),
            np.concatenate([time_ms, other_time]),
            np.concatenate([micro, np.zeros(900, np.int64)]),
            kind=kind,
        )
    )
    for _, batch in with_others:
        batch.events["flags"] |= np.where(batch.events["kind"] == 2, STEPS, 0).astype(np.uint8)
    alone, mixed = live(scorer, list(batches(user, time_ms, micro))), live(scorer, with_others)
    as_of = np.array([START_MS + 110 * 86_400_000])
    names = made.manifest.features
    constant = np.array([name not in made.manifest.trained_features for name in names])
    moved = np.zeros(len(names), bool)
    for name, (_, head, states) in alone.items():
        _, other_head, other_states = mixed[name]
        a, b = (
            scorer.rescore(s, h[None], as_of)
            for s, h in ((states, head), (other_states, other_head))
        )
        pair = [
            encode(s, as_of, START_MS, FeatureSettings(), held=True)[0]
            for s in (states, other_states)
        ]
        # "never" counts from the last event of any type: a hundredth of a day's logarithm
        moved |= np.abs(pair[0] - pair[1]) > 0.05
        np.testing.assert_allclose(a.expected, b.expected, rtol=1e-3)
    assert moved.sum() > 20
    assert not [name for name, m in zip(names, moved & ~constant, strict=True) if m]
    assert {*HELD_NAMES} <= {*made.manifest.trained_features}


@pytest.mark.long
def test_on_cdnow_the_silence_curve_says_what_the_model_would(
    cdnow_generation: Generation, data_dir: Path
) -> None:
    model = ModelSettings(horizons_days=(7, 30, 91), headline="d91")
    scorer = Scorer(cdnow_generation, model, FeatureSettings())
    user, time_ms, micro = cdnow(data_dir)
    known = (time_ms < cutoff_days([200])[0]) & (user % 8 == 0)
    (_, batch), *more = batches(user[known], time_ms[known], micro[known], size=10**6)
    assert not more
    fold_settings = FoldSettings.of(FeatureSettings(), ["s0"])
    folded = fold(States.empty(batch.users), batch, Clocks.start(1), fold_settings)
    zero = scorer.start(len(batch.users))
    _, head = scorer.advance(folded, zero, zero)
    as_of = folded.states.head["last_ms"]
    first = scorer.rescore(folded.states, head, as_of)
    # a silent day of each user between his last order and the next, or the log's end
    r = np.random.default_rng(0)
    end = np.full(len(batch.users), cutoff_days([545])[0])
    for n, name in enumerate(batch.users):
        own = time_ms[user == int(name[1:])]
        end[n] = min(own[own > as_of[n]], default=end[n])
    when = as_of + (r.random(len(end)) * (end - as_of)).astype(np.int64)
    read = scorer.previous_at(scorer.last(1, as_of, first), when)
    asked = scorer.rescore(folded.states, head, when).expected[:, 0]
    off = np.abs(read - asked) / first.expected[:, 0]
    assert np.quantile(off, 0.95, axis=0).max() <= 0.03
