"""The models that can be asked for by name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.step import TOKENS
from scoring import checks
from scoring.errors import ScoringError
from scoring.generation import Generation, prior
from scoring.settings import ModelSettings, TrainingSettings
from scoring.training import trainable
from scoring.training.examples import Examples
from scoring.training.families import TAKES, passed_over, takes
from scoring.training.forecasts import score
from scoring.training.splits import held_out
from scoring.training.trainable import BLENDED, SERVED, TRAINED, Ask, Made, accepted, family
from scoring.zoo import FAMILIES, mlp
from tests.scoring.test_linear import ROWS

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()


def test_an_unknown_family_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(ScoringError, match=r"no family is called 'gnu'.*transformer"):
        family("gnu")


@pytest.mark.parametrize("name", ["prior", SERVED])
def test_what_cannot_be_retrained_is_no_family(name: str) -> None:
    with pytest.raises(ScoringError, match="no family"):
        family(name)


def test_served_is_the_family_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def make(ask: Ask) -> Made:
        asked.append(ask.training.family)
        return Made(prior(ModelSettings()), lambda: prior(ModelSettings()))

    monkeypatch.setitem(TRAINED, "gru", replace(TRAINED["gru"], make=make))
    TRAINED[SERVED].make(Ask(None, [90], TrainingSettings(family="gru")))
    assert asked == ["gru"]


def test_the_page_of_models_names_every_one_that_can_be_asked_for() -> None:
    assert [name for name in {*TRAINED, *FAMILIES} if f"`{name}`" not in PAGE] == []


def test_the_page_of_models_says_of_what_a_blend_is_the_mean() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| `blend` | the mean"))
    assert re.findall(r"`(\w+)`", row) == ["blend", *BLENDED]


def test_a_blend_is_of_two_nets_trees_and_products_and_keeps_every_promise() -> None:
    pytest.importorskip("torch", reason="torch is in the extra `train`")
    pytest.importorskip("lightgbm", reason="training needs the extra `train`")
    how = TrainingSettings(width=4, epochs=1, least_orders=20)
    made = TRAINED["blend"].make(Ask(ROWS, (), how)).whole
    assert made.manifest.params["members"] == ["mingru", "dnn", "gbm", "polynomial"]
    names = made.manifest.features
    sample = checks.Sample.drawn(30, 4, len(names), len(TOKENS))
    assert checks.check(made, sample, checks.untrained(made, names)) == []


@pytest.mark.parametrize("teacher", ["transformer", "linear"])
def test_a_teacher_may_be_a_net_and_have_several_seeds_in_one_voice(teacher: str) -> None:
    pytest.importorskip("torch", reason="torch is in the extra `train`")
    how = TrainingSettings(
        width=4, window=3, epochs=1, least_orders=20, teachers=(teacher,), teacher_seeds=2
    )
    both = trainable._teaching(teacher, how)(ROWS)
    if not TRAINED[teacher].seeded:
        assert both.manifest.family == teacher
        return
    one, other = (
        trainable._teaching(teacher, how.model_copy(update={"teacher_seeds": 1, "seed": seed}))(
            ROWS
        )
        for seed in (0, 1)
    )
    said = [score(made, ROWS).expected for made in (one, other, both)]
    assert not np.allclose(said[0], said[1], rtol=1e-3)
    np.testing.assert_allclose(said[2], (said[0] + said[1]) / 2, rtol=1e-5, atol=1e-6)


def test_a_net_learns_from_a_net() -> None:
    pytest.importorskip("torch", reason="torch is in the extra `train`")
    how = TrainingSettings(width=4, window=3, epochs=1, least_orders=20)

    def made(**more: object) -> Generation:
        return TRAINED["mingru"].make(Ask(ROWS, (), how.model_copy(update=more))).whole

    taught = made(teachers=("gru",))
    assert taught.manifest.params["teacher_weight"] == how.teacher_weight
    assert taught.id != made().id


@pytest.mark.parametrize("name", ["linear", "mingru", "blend"])
def test_what_serves_knows_the_users_who_are_held_out_and_its_like_does_not(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="torch is in the extra `train`")
    monkeypatch.setattr(trainable, "BLENDED", ("mingru", "linear"))
    how = TrainingSettings(width=4, epochs=1, least_orders=20)

    def fitted(made: Generation) -> dict[str, bytes]:
        """Files without a manifest, where the calibration stands: all users make it."""
        return {name: file for name, file in made.files.items() if not name.endswith(".json")}

    def both(rows: Examples) -> tuple[dict[str, bytes], dict[str, bytes]]:
        made = TRAINED[name].make(Ask(rows, (), how))
        return fitted(made.whole), fitted(made.apart())

    told = ROWS.rows(np.arange(len(ROWS)))
    told.value[held_out(told, how)] *= 3
    (whole, apart), (changed, same) = both(ROWS), both(told)
    assert same == apart != whole != changed


@pytest.mark.parametrize("name", ["blend", "prior", SERVED, "gnu"])
def test_who_cannot_teach_is_refused_and_who_can_is_named(name: str) -> None:
    how = TrainingSettings(teachers=(name,))
    with pytest.raises(ScoringError, match=rf"no teacher is called '{name}'.*gbm.*transformer"):
        accepted(how)
    with pytest.raises(ScoringError, match="no teacher is called"):
        trainable.teacher_of(ROWS, how, None)


# Another value of each setting: visible after one epoch where it is taken.
OTHER: dict[str, object] = {
    "loss": "mse",
    "optimizer": "sgd",
    "width": 8,
    "window": 1,
    "epochs": 2,
    "patience": 9,
    "users_per_batch": 16,
    "rate": 0.1,
    "decay": 0.3,
    "l1": 0.1,
    "dropout": 0.6,
    "event_dropout": 0.5,
    "time_jitter_days": 9.0,
    "cutoff_dropout": 0.5,
    "held_out": 0.5,
    "least_orders": 10,
    "teachers": ("linear",),
    "teacher_seeds": 2,
    "teacher_weight": 0.9,
    "seed": 1,
}
# Taken, but of no effect on a first epoch of so few users, or without a teacher.
LATER = {"patience", "least_orders", "teacher_seeds", "teacher_weight"}


def test_every_family_says_which_settings_it_takes() -> None:
    assert {*TAKES} == {name for name, kind in TRAINED.items() if kind.trains} - {SERVED}
    assert {*OTHER, "family"} == {*TrainingSettings.model_fields}
    assert TAKES["blend"] == frozenset().union(*(TAKES[name] for name in BLENDED))
    assert not TAKES["mlp"] & {*mlp.RECIPE}


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("gru", "transformer", "dnn")]


@pytest.mark.parametrize("name", ["mingru", "mlp", "linear", *LONG])
def test_a_setting_moves_a_family_that_takes_it_and_no_other(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="torch is in the extra `train`")
    # 100 epochs of the whole log at once, which a test need not wait for
    monkeypatch.setitem(mlp.RECIPE, "epochs", 1)
    how = TrainingSettings(family=name, width=4, window=3, epochs=1, least_orders=20)

    def made(**more: object) -> dict[str, bytes]:
        changed = how.model_copy(update=more)
        found = TRAINED[name].make(Ask(ROWS, (), changed)).apart()
        return {name: file for name, file in found.files.items() if not name.endswith(".json")}

    plain = made()
    moved = {setting for setting, value in OTHER.items() if made(**{setting: value}) != plain}
    taken = takes(how)
    assert moved <= taken
    assert taken - {"family"} - moved <= LATER | {"held_out"}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"family": "gbm", "optimizer": "sgd"}, r"'gbm'.*training.optimizer \(mingru, gru, tr"),
        ({"family": "dnn", "width": 8}, r"'dnn'.*training.width \(mingru, gru, transformer, blend"),
        ({"family": "gru", "teachers": ("gbm",)}, r"training.teachers \(mingru, blend\): take"),
        ({"family": "mlp", "loss": "mae", "l1": 1.0}, r"training.loss \(.*\); training.l1 \("),
        ({"window": 3}, r"'mingru'.*training.window \(transformer\)"),
        ({"family": "gnu"}, "no family is called 'gnu'"),
    ],
    ids=str,
)
def test_a_setting_that_the_family_does_not_take_is_refused(how: dict[str, Any], said: str) -> None:
    with pytest.raises(ScoringError, match=said):
        accepted(TrainingSettings(**how))


def test_what_is_taken_or_left_at_its_default_is_accepted() -> None:
    for how in (
        TrainingSettings(family="gbm", seed=7, held_out=0.3, optimizer="adamw", epochs=None),
        TrainingSettings(teachers=("transformer",), window=3, teacher_weight=0.2),
        TrainingSettings(family="blend", teachers=("gbm",), width=16),
    ):
        assert accepted(how) is how


def test_where_families_are_compared_it_is_said_who_passes_over_what() -> None:
    how = TrainingSettings(width=16, teachers=("gbm",))
    assert passed_over(["served", "mingru", "pareto_gg"], how) == ""
    assert passed_over(["mingru", "gru", "gbm", "linear", "gbm"], how) == (
        "gru does not take training.teachers; gbm and linear do not take training.width and"
        " training.teachers: trained without"
    )
