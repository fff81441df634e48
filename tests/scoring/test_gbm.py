"""Boosted trees: served without lightgbm, equal to what it says itself."""

import subprocess
import sys
from dataclasses import replace
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("lightgbm") is None:  # without loading it, as each of the jobs side by side would
    pytest.skip("lightgbm is in the extra `train`", allow_module_level=True)

from scoring.errors import TooLittleData
from scoring.generation import Manifest
from scoring.judging import metrics
from scoring.judging.evaluation import score
from scoring.serving import session
from scoring.zoo import forest, gbm, two_part
from scoring.zoo.two_part import Labels
from tests.scoring.test_linear import ROWS

KEEP = two_part.learnable(ROWS)
X = ROWS.features[:, KEEP]
MANIFEST = Manifest(family="gbm", horizons_s=ROWS.horizons_s)


@cache  # not as the module is read: each of the jobs side by side reads all modules
def grown() -> gbm.Forest:
    return gbm.fit(X, Labels.of(ROWS), gbm.held_out(ROWS), rounds=60)


def test_trees_of_users_of_whom_nobody_paid_are_too_little_data() -> None:
    nobody = replace(ROWS, value=0 * ROWS.value, between=ROWS.between & False)
    with pytest.raises(TooLittleData, match="a longer log"):
        gbm.fit(X, Labels.of(nobody), gbm.held_out(ROWS), rounds=5)


def test_graph_equals_lightgbm_itself() -> None:
    """Also on every threshold and on the floats next to it, where a rounded one would differ."""
    rng, ensembles = np.random.default_rng(0), grown().ensembles
    cuts = [
        np.float32(node["threshold"])
        for tree in ensembles[0].dump_model()["tree_info"]
        for node in nodes(tree["tree_structure"])
    ]
    assert len(cuts) > 50
    edges = np.concatenate([cuts, np.nextafter(cuts, 9e9), np.nextafter(cuts, -9e9)])
    near = np.repeat(X[:1], len(edges), axis=0)
    near[:] = rng.choice(edges, near.shape)
    for x in (X, near.astype(np.float32)):
        (said,) = session(forest.graph(ensembles, X.shape[1])).run(None, {"x": x})
        twin = np.stack([np.asarray(e.predict(x, raw_score=True)) for e in ensembles], 1)
        assert said == pytest.approx(twin, abs=2e-6 * (1 + np.abs(twin).max()))


def nodes(node: dict) -> list[dict]:  # type: ignore[type-arg]
    if "leaf_value" in node:
        return []
    return [node, *nodes(node["left_child"]), *nodes(node["right_child"])]


def test_the_same_examples_and_seed_give_the_same_generation() -> None:
    again = gbm.fit(X, Labels.of(ROWS), gbm.held_out(ROWS), rounds=60)
    other = gbm.fit(X, Labels.of(ROWS), gbm.held_out(ROWS), rounds=60, seed=1)
    first, same, unlike = (gbm.generation(MANIFEST, KEEP, f).id for f in (grown(), again, other))
    assert first == same
    assert first != unlike


def test_family_ranks_and_hits_the_level() -> None:
    made = gbm.train(ROWS, rounds=60)
    h = 1
    rows = ROWS.rows(ROWS.mask[:, h])
    said = score(made, rows).expected[:, 0, h].astype(np.float64)
    assert 0.75 < metrics.bias(rows.value[:, h], said) < 1.3
    assert metrics.ngini(rows.value[:, h], said) > 0.55
    assert made.manifest.calibration


def test_early_stopping_grows_no_more_trees_than_help() -> None:
    """Noise has nothing to learn: the first trees are already too many."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 3)).astype(np.float32)
    noise = (rng.random((1500, 1)) < 0.3) & np.ones((1500, 1), bool)
    labels = Labels(noise.astype(np.float64), noise, np.ones_like(noise))
    made = gbm.fit(x, labels, np.arange(1500) % 4 == 0, rounds=300)
    assert made.ensembles[0].num_trees() < 60


def test_serving_loads_no_lightgbm(tmp_path: object) -> None:
    code = (
        "import sys; import scoring.zoo.gbm, scoring.scorer;"
        "assert not {'lightgbm', 'sklearn', 'onnx'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_tree_that_splits_by_what_is_missing_is_refused() -> None:
    lightgbm = pytest.importorskip("lightgbm")
    x = np.where(np.random.default_rng(0).random((400, 2)) < 0.3, np.nan, 1.0)
    x[:, 1] = np.arange(400)
    params = {"objective": "regression", "verbosity": -1, "num_threads": 1}
    grown = lightgbm.train(params, lightgbm.Dataset(x, np.isnan(x[:, 0]) * 1.0), 3)
    with pytest.raises(ValueError, match="what is missing"):
        forest.graph([grown], 2)
