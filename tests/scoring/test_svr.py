from typing import Any

import numpy as np
import pytest

from scoring.judging import metrics
from scoring.judging.evaluation import score
from scoring.zoo import svr
from tests.scoring.test_linear import ROWS


def blobs(rows: int = 800) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(rows, 4)).astype(np.float32)
    y = z @ np.array([1.0, -0.6, 0.3, 0.0]) + rng.normal(0, 0.8, rows) > 1.0
    return z, y


def test_machine_equals_that_of_scikit_learn() -> None:
    """liblinear minimises |w|^2 / 2 + C sum of squared losses; so C = 1 / (2 ridge)."""
    learned = pytest.importorskip("sklearn.svm", reason="scikit-learn is in the extra `train`")
    z, y = blobs()
    weights, bias = svr.machine(z, y, 5.0)
    # the bias is not pulled to 0 here: a large intercept_scaling frees theirs, too
    twin = learned.LinearSVC(
        C=1 / 5.0 / 2, dual=False, tol=1e-8, intercept_scaling=100, class_weight="balanced"
    ).fit(z, y)
    assert weights == pytest.approx(twin.coef_[0], abs=2e-3)
    assert bias == pytest.approx(twin.intercept_[0], abs=2e-3)


def test_regression_equals_that_of_scikit_learn() -> None:
    learned = pytest.importorskip("sklearn.svm", reason="scikit-learn is in the extra `train`")
    z, _ = blobs()
    target = z @ np.array([0.5, 0.2, 0.0, -0.1]) + 3 + np.random.default_rng(1).normal(0, 0.5, 800)
    weights, bias = svr.tube(z, target, 5.0)
    twin = learned.LinearSVR(
        epsilon=svr.TUBE,
        C=1 / 5.0 / 2,
        loss="squared_epsilon_insensitive",
        dual=False,
        tol=1e-8,
        intercept_scaling=100,
        max_iter=10_000,
    ).fit(z, target)
    assert weights == pytest.approx(twin.coef_, abs=2e-3)
    assert bias == pytest.approx(twin.intercept_[0], abs=2e-3)


def test_products_of_cosines_approach_the_gaussian_kernel() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(40, 6)).astype(np.float32)
    width = svr.WIDTH * np.sqrt(12)
    omega = (rng.normal(size=(6, 20_000)) / width).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, 20_000).astype(np.float32)
    made = svr.with_cosines(z, omega, phase)[:, 6:]
    apart = np.square(z[:, None] - z[None]).sum(-1)
    kernel = np.exp(-apart / (2 * width**2))
    assert made @ made.T / 20_000 == pytest.approx(kernel, abs=0.04)


def test_kernel_tells_a_ring_from_its_middle_and_a_line_does_not() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4000, 2)).astype(np.float32)
    inside = np.square(z).sum(1) < 1.4
    omega = (rng.normal(size=(2, 128)) / 2).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, 128).astype(np.float32)
    wide = svr.with_cosines(z, omega, phase)

    def right(design: np.ndarray) -> float:
        w, b = svr.classify(design, inside, 1.0)
        return float((((design @ w + b) > 0) == inside).mean())

    assert right(z) < 0.65
    assert right(wide) > 0.95


def test_margins_become_probabilities() -> None:
    z, y = blobs(5000)
    w, b = svr.classify(z, y, 1.0)
    p = 1 / (1 + np.exp(-(z @ w + b)))
    for low in np.arange(0.1, 0.9, 0.2):
        some = (p >= low) & (p < low + 0.2)
        assert y[some].mean() == pytest.approx(p[some].mean(), abs=0.06)


@pytest.mark.parametrize("fourier", [0, 32])
def test_family_ranks_and_hits_the_level_of_what_it_was_trained_on(fourier: int) -> None:
    made = svr.train(ROWS, fourier)
    assert made.manifest.family == ("svr_rff" if fourier else "svr")
    h = 1
    rows = ROWS.rows(ROWS.mask[:, h])
    said = score(made, rows).expected[:, 0, h].astype(np.float64)
    assert 0.75 < metrics.bias(rows.value[:, h], said) < 1.3
    assert metrics.ngini(rows.value[:, h], said) > 0.5


def test_where_all_are_alike_there_is_no_margin_but_a_rate() -> None:
    z, _ = blobs(50)
    w, b = svr.classify(z, np.zeros(50, bool), 1.0)
    assert not w.any()
    assert 1 / (1 + np.exp(-b)) == pytest.approx(0.5 / 51)


def test_rare_events_still_have_a_margin() -> None:
    """One in fifty: without the weights the margin would be that nobody is active."""
    z, _ = blobs(8000)
    rng = np.random.default_rng(2)
    rare = rng.random(8000) < 1 / (1 + np.exp(4.5 - 1.2 * z[:, 0]))
    assert rare.mean() < 0.04
    w, b = svr.classify(z, rare, 30.0)
    assert metrics.auc(rare, z @ w + b) > 0.75
    assert (1 / (1 + np.exp(-(z @ w + b)))).mean() == pytest.approx(rare.mean(), rel=0.05)


def test_a_kernel_is_fitted_to_a_part_of_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    fit = svr.fit

    def counting(x: np.ndarray, *rest: Any) -> dict[str, np.ndarray]:
        seen.append(len(x))
        return fit(x, *rest)

    monkeypatch.setattr(svr, "MOST_ROWS", 700)
    monkeypatch.setattr(svr, "fit", counting)
    svr.train(ROWS, fourier=8, calibrated=False)
    svr.train(ROWS, calibrated=False)
    assert seen == [700, len(ROWS)]
