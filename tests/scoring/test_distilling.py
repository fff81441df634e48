from dataclasses import replace

import numpy as np
import pytest

from scoring.generation import Generation
from scoring.judging import metrics
from scoring.training import distilling
from scoring.training.examples import Examples
from scoring.zoo import linear, polynomial
from tests.scoring.test_linear import ROWS


def quick(rows: Examples) -> Generation:
    return linear.train(rows, calibrated=False)


def test_no_row_is_taught_by_a_label_of_its_own_user() -> None:
    """Spoil the labels of one fold: what is said of it stays, what is said of the others moves."""
    fold = distilling.dealt(ROWS, 3)
    honest = distilling.taught(ROWS, {"linear": quick}, folds=3)
    own = fold == 0
    spoilt = replace(
        ROWS,
        value=np.where(own[:, None], ROWS.value * 50 + 7, ROWS.value),
        between=np.where(own[:, None], ~ROWS.between, ROWS.between),
    )
    other = distilling.taught(spoilt, {"linear": quick}, folds=3)
    assert np.array_equal(honest.expected[own], other.expected[own])
    assert np.array_equal(honest.p_active[own], other.p_active[own])
    assert not np.isclose(honest.expected[~own], other.expected[~own]).any()


def test_all_rows_of_a_user_lie_in_one_fold_and_folds_are_about_equal() -> None:
    fold = distilling.dealt(ROWS, 4)
    for user in np.unique(ROWS.user)[:50]:
        assert len(np.unique(fold[ROWS.user == user])) == 1
    assert np.bincount(fold).min() > 0.7 * len(fold) / 4


def test_teacher_is_the_mean_of_its_families_and_ranks_users_it_never_saw() -> None:
    fits = {"linear": quick, "polynomial": lambda rows: polynomial.train(rows, calibrated=False)}
    both = distilling.taught(ROWS, fits, folds=3)
    each = [distilling.taught(ROWS, {name: fit}, folds=3) for name, fit in fits.items()]
    assert both.expected == pytest.approx(np.mean([t.expected for t in each], axis=0))
    both.check(ROWS)
    rows = ROWS.mask[:, 1]
    assert metrics.ngini(ROWS.value[rows, 1], both.expected[rows, 1]) > 0.5


def test_families_are_fitted_to_no_more_rows_than_they_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distilling, "MOST_ROWS", 600)
    seen: list[int] = []

    def counting(rows: Examples) -> Generation:
        seen.append(len(rows))
        return quick(rows)

    told: list[tuple[int, int]] = []
    made = distilling.taught(
        ROWS, {"linear": counting}, folds=2, told=lambda *step: told.append(step)
    )
    assert max(seen) < 900 < len(ROWS)
    assert made.known().all(), "every row is scored all the same"
    assert told == [(0, 2), (1, 2), (2, 2)]
