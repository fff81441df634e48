"""A teacher: a net moves towards what it says, also where there is no label yet."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="torch is in the extra `train`")

from featurestore.settings import FeatureSettings  # noqa: E402
from scoring.errors import ScoringError  # noqa: E402
from scoring.interface import Prediction  # noqa: E402
from scoring.settings import TrainingSettings  # noqa: E402
from scoring.training import loop  # noqa: E402
from scoring.training.examples import Examples, build  # noqa: E402
from scoring.training.forecasts import score  # noqa: E402
from scoring.training.teacher import Teacher  # noqa: E402
from tests.scoring.shoplog import START_MS, batches, cutoff_days, shop  # noqa: E402
from tests.scoring.tiny import HORIZONS_S  # noqa: E402

Values = npt.NDArray[np.float64]
QUICK = TrainingSettings(epochs=8, width=4, users_per_batch=64, rate=1e-2, teacher_weight=0.5)


@pytest.fixture(scope="module")
def examples() -> Examples:
    return build(
        batches(*shop(400, 200)),
        FeatureSettings(),
        ["s0"],
        HORIZONS_S,
        cutoff_days(range(38, 199, 20)),
        log_start_ms=START_MS,
    )


def odd(examples: Examples) -> Teacher:
    """Says of everybody what no label does: much of those who ordered long ago."""
    n = len(examples)
    stale: Values = np.argsort(np.argsort(examples.features[:, 3])) / n
    growing = np.array([0.2, 0.5, 1.0])
    return Teacher(400 * (0.1 + stale[:, None]) * growing, (0.2 + 0.6 * stale[:, None]) * growing)


def said(examples: Examples, settings: TrainingSettings, teacher: Teacher | None) -> Prediction:
    made = loop.generation(loop.train(examples, settings, teacher=teacher), examples)
    return score(made, examples)


def apart(made: Prediction, teacher: Teacher) -> tuple[float, float]:
    """Mean distance from the teacher: of log values, of probabilities."""
    value = np.abs(np.log1p(made.expected[:, 0]) - np.log1p(teacher.expected)).mean()
    return float(value), float(np.abs(made.p_active[:, 0] - teacher.p_active).mean())


def test_a_student_moves_towards_its_teacher_the_more_it_counts(examples: Examples) -> None:
    teacher = odd(examples)
    alone = apart(said(examples, QUICK, None), teacher)
    half = apart(said(examples, QUICK, teacher), teacher)
    wholly = apart(
        said(examples, QUICK.model_copy(update={"teacher_weight": 1.0}), teacher), teacher
    )
    for at in range(2):
        assert wholly[at] < half[at] < alone[at]
        assert wholly[at] < 0.5 * alone[at]


def test_a_teacher_without_weight_or_without_a_word_changes_nothing(examples: Examples) -> None:
    ignored = QUICK.model_copy(update={"teacher_weight": 0.0})
    mature = examples.rows(np.flatnonzero(examples.mask.any(axis=1)))
    alone = said(mature, QUICK, None).expected
    np.testing.assert_array_equal(said(mature, ignored, odd(mature)).expected, alone)


def test_a_generation_says_whether_it_had_a_teacher(examples: Examples) -> None:
    brief = QUICK.model_copy(update={"epochs": 1})
    for teacher, weight in ((None, None), (odd(examples), 0.5)):
        found = loop.train(examples, brief, teacher=teacher)
        params = loop.generation(found, examples).manifest.params
        assert params.get("teacher_weight") == weight


def test_rows_without_a_mature_label_are_learned_from_a_teacher(examples: Examples) -> None:
    young = np.flatnonzero(~examples.mask.any(axis=1))
    assert len(young)
    teacher = odd(examples)
    silent = Teacher(teacher.expected.copy(), teacher.p_active.copy())
    silent.expected[young] = np.nan
    assert not np.array_equal(
        said(examples, QUICK, teacher).expected, said(examples, QUICK, silent).expected
    )


def test_the_order_of_the_rows_is_the_teachers_too(examples: Examples) -> None:
    wholly = QUICK.model_copy(update={"teacher_weight": 1.0})
    teacher = odd(examples)
    order = np.random.default_rng(0).permutation(len(examples))
    shuffled = examples.rows(order)
    near, _ = apart(said(examples, wholly, teacher), teacher)
    also, _ = apart(said(shuffled, wholly, teacher.rows(order)), teacher.rows(order))
    wrong, _ = apart(said(shuffled, wholly, teacher), teacher)
    assert also == pytest.approx(near, rel=0.3)
    assert wrong > 2 * near


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (Teacher(np.ones((3, 3)), np.ones((3, 3))), "in their order"),
        (None, "a negative value"),
    ],
)
def test_what_no_teacher_can_say_is_refused(
    examples: Examples, teacher: Teacher | None, words: str
) -> None:
    shape = examples.value.shape
    with pytest.raises(ScoringError, match=words):
        loop.train(examples, QUICK, teacher=teacher or Teacher(-np.ones(shape), np.ones(shape)))
