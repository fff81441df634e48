"""Gradient-boosted two-part values: LightGBM for activity and level of each increment.

    q[k], hazard[k]   binary cross-entropy
    mu[k]             squared error of the log value, given that there is one

all learned from every user at many cut-offs. Trees need no scaling and find products and
thresholds by themselves; they cannot go beyond the values that training saw. How many trees a part
gets is found by early stopping on the later cut-offs of held-out users; then it is grown again on
everybody. The trees are served as an ONNX graph, without lightgbm.

Cost: 9 ensembles of up to ROUNDS trees of LEAVES leaves; no carry. See docs/accuracy.md for µs.
Source: Ke et al. 2017, "LightGBM: a highly efficient gradient boosting decision tree"; the two
parts in scoring.zoo.two_part. Shapes as there. lightgbm is imported when one is trained.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from scoring import calibration
from scoring.errors import ScoringError, TooLittleData
from scoring.generation import Generation, Manifest, build
from scoring.heads import mixture, prediction
from scoring.interface import Floats, Prediction
from scoring.outliers import bounds
from scoring.serving import Lazy, run_chunked, weights
from scoring.training.examples import Examples
from scoring.zoo import two_part
from scoring.zoo.two_part import OUTPUTS, Increment, Labels, sigmoid

if TYPE_CHECKING:
    import lightgbm

GRAPH = "model.onnx"
FILE = "weights.safetensors"
ROUNDS, PATIENCE, FEWEST = 400, 30, 20
LEAVES = 15
HELD_OUT = 0.2  # of users, to find how many trees
FIXED: dict[str, Any] = {
    "learning_rate": 0.04,
    "num_leaves": LEAVES,
    "min_data_in_leaf": 60,
    "lambda_l2": 5.0,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "max_bin": 127,
    "use_missing": False,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}

Mask = npt.NDArray[np.bool_]


class Gbm:
    """A trained generation: implements scoring.interface.ValueModel."""

    carry_size = 0

    def __init__(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        arrays = weights(files[FILE])
        self._columns = two_part.columns(manifest)
        self._trees = Lazy(files[GRAPH])
        self._sigma, self._cap = arrays["sigma"], arrays["cap"]  # (H,), (H,)
        self._calibration = calibration.of(manifest.calibration)
        self.horizons_s = manifest.horizons_s

    def advance(self, carries: Floats, rows: npt.NDArray[np.int32], tokens: Floats) -> Floats:
        """There is no carry."""
        return carries.copy()

    def predict(self, carries: Floats, features: Floats) -> Prediction:
        """`features` (U, K, F) -> Prediction, calibrated."""
        users, knots, _ = features.shape
        x = features[..., self._columns].reshape(users * knots, len(self._columns))
        (out,) = run_chunked(self._trees.get(), {"x": np.ascontiguousarray(x)})
        split = out.reshape(users, knots, OUTPUTS, len(self._sigma))
        q, hazard, mu = sigmoid(split[:, :, 0]), sigmoid(split[:, :, 1]), split[:, :, 2]
        made = mixture(q, mu, np.broadcast_to(self._sigma, mu.shape), self._cap, hazard)
        return prediction(made, *self._calibration(made.expected, made.p_active))


def load(manifest: Manifest, files: Mapping[str, bytes]) -> Gbm:
    """Found by scoring.zoo.FAMILIES."""
    return Gbm(manifest, files)


def train(
    examples: Examples, rounds: int = ROUNDS, seed: int = 0, calibrated: bool = True
) -> Generation:
    """Grow on all cut-offs, calibrated on the newest."""

    def fitted(manifest: Manifest, rows: Examples) -> Generation:
        keep = two_part.learnable(rows)
        x = rows.features[:, keep]
        forest = fit(x, Labels.of(rows), held_out(rows, seed), rounds, seed)
        seen = bounds(two_part.named(keep), x.min(0), x.max(0))  # no threshold lies beyond
        params = {**manifest.params, **seen}
        return generation(manifest.model_copy(update={"params": params}), keep, forest)

    params = {"rounds": rounds, "seed": seed}
    return two_part.train("gbm", examples, fitted, params, calibrated)


def held_out(examples: Examples, seed: int = 0) -> Mask:
    """(N,) rows of some users."""
    drawn = np.array([zlib.crc32(f"{seed}:{user}".encode()) for user in examples.users])
    return drawn[examples.user] < HELD_OUT * (1 << 32)


@dataclass(frozen=True, slots=True)
class Forest:
    """Fitted ensembles, in the order of the outputs, and what stands beside them."""

    ensembles: list[lightgbm.Booster]  # 3 H: q, hazard and mu of each increment
    sigma: Floats  # (H,)
    cap: Floats  # (H,)


def fit(x: Floats, labels: Labels, held: Mask, rounds: int = ROUNDS, seed: int = 0) -> Forest:
    """All parts from feature columns (N, F); `held` (N,) rows say when to stop."""
    parts = Increment.all(labels)
    q, hazard, mu, sigma = [], [], [], []
    for part in parts:
        q.append(_grow(x, part.spent, part.mature, held, "binary", rounds, seed)[0])
        hazard.append(_grow(x, part.active, part.fresh, held, "binary", rounds, seed)[0])
        y = np.zeros(len(x))
        y[part.paid] = np.log(part.value)
        level, rest = _grow(x, y, part.paid, held, "regression", rounds, seed)
        mu.append(level)
        sigma.append(two_part.spread(rest))
    cap = np.array([part.cap for part in parts], np.float32)
    return Forest([*q, *hazard, *mu], np.array(sigma, np.float32), cap)


def _grow(
    x: Floats,
    y: npt.NDArray[Any],
    rows: Mask,
    held: Mask,
    objective: str,
    rounds: int,
    seed: int,
) -> tuple[lightgbm.Booster, npt.NDArray[np.float64]]:
    """An ensemble for the marked rows, and y - prediction of those held out, when they were."""
    try:
        import lightgbm
    except ImportError as error:
        raise ScoringError(
            "`gbm` is trained with lightgbm: install the package with its extra `train`, or name"
            " another family (`livevalue evaluate --models list`)"
        ) from error
    params = {**FIXED, "objective": objective, "seed": seed}
    target = y.astype(np.float64)

    def data(at: Mask) -> lightgbm.Dataset:
        return lightgbm.Dataset(x[at], target[at], params=params, free_raw_data=False)

    if not rows.any():
        raise TooLittleData(
            "there is nothing that trees could learn from in the earlier windows: give a longer log"
        )
    fitted, checked = rows & ~held, rows & held
    best, rest = FEWEST, np.zeros(0)
    if checked.sum() >= 20 and fitted.any():
        stop = lightgbm.early_stopping(PATIENCE, verbose=False)
        trial = lightgbm.train(
            params, data(fitted), rounds, valid_sets=[data(checked)], callbacks=[stop]
        )
        best = max(trial.best_iteration, 1)
        said = np.asarray(trial.predict(x[checked], num_iteration=best, raw_score=True))
        rest = target[checked] - said
    return lightgbm.train(params, data(rows), best), rest


def generation(manifest: Manifest, keep: Mask, forest: Forest) -> Generation:
    """Export a fitted forest; `manifest` says what it was fitted on."""
    from scoring.zoo.forest import graph

    trees = [tree for e in forest.ensembles for tree in e.dump_model()["tree_info"]]
    leaves = sum(tree["num_leaves"] for tree in trees)
    counted = {"trees": len(trees), "parameters": 2 * leaves - len(trees)}  # thresholds and leaves
    manifest = manifest.model_copy(
        update={
            "features": two_part.NAMES,
            "trained_features": two_part.named(keep),
            "params": {**manifest.params, **counted},
        }
    )
    files = {
        GRAPH: graph(forest.ensembles, int(keep.sum())),
        FILE: save({"sigma": forest.sigma, "cap": forest.cap}),
    }
    return build(manifest, files)
