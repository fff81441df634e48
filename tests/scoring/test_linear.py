import numpy as np
import pytest

from featurestore.settings import FeatureSettings
from scoring.errors import GenerationError, TooLittleData
from scoring.generation import MANIFEST, Manifest, dump, load
from scoring.generation import build as build_generation
from scoring.training.examples import Examples, build
from scoring.zoo import linear
from scoring.zoo.two_part import NAMES, Labels
from tests.scoring.logs import DAY, shoppers

HORIZONS = (7 * 86_400, 30 * 86_400, 90 * 86_400)


def examples() -> Examples:
    log = shoppers()
    start = int(log[0][1].events["time_ms"].min())
    cutoffs = np.array([start + day * DAY for day in (60, 80, 100, 120, 140, 170)], np.int64)
    return build(log, FeatureSettings(), ["events"], HORIZONS, cutoffs, start, 0)


ROWS = examples()
MADE = linear.train(ROWS)
VARYING = ROWS.features[:, np.ptp(ROWS.features, axis=0) > 0]


def predicted(rows: Examples) -> np.ndarray:
    none = np.zeros((len(rows), 0), np.float32)
    return MADE.model.predict(none, rows.features[:, None]).expected[:, 0]


def test_level_over_all_users_is_right() -> None:
    for h in range(3):
        rows = ROWS.rows(ROWS.mask[:, h])
        assert predicted(rows)[:, h].sum() == pytest.approx(rows.value[:, h].sum(), rel=0.3)


def test_users_who_go_on_to_spend_are_ranked_higher() -> None:
    rows = ROWS.rows(ROWS.window == 3)
    made = predicted(rows)[:, 2]
    assert made[rows.value[:, 2] > 0].mean() > 2 * made[rows.value[:, 2] == 0].mean()


def test_immature_labels_are_not_learned_from() -> None:
    labels = Labels.of(ROWS)
    honest = linear.fit(VARYING, labels)
    wild = np.where(ROWS.mask, labels.increments, 1e6)
    assert not ROWS.mask.all(), "some label must be immature, or nothing is tested"
    same = linear.fit(VARYING, Labels(wild, ROWS.between | ~ROWS.mask, ROWS.mask))
    assert np.array_equal(honest["sigma"], same["sigma"])
    assert np.array_equal(honest["cap"], same["cap"])
    assert np.allclose(honest["weights"], same["weights"])


def test_a_log_without_labels_is_refused_in_words() -> None:
    labels = Labels(ROWS.increments(), ROWS.between, np.zeros_like(ROWS.mask))
    with pytest.raises(TooLittleData, match="the log is too short"):
        linear.fit(VARYING, labels)


def test_a_generation_of_other_features_is_refused_in_words() -> None:
    files = dump(MADE)
    manifest = Manifest.model_validate_json(files.pop(MANIFEST))
    other = manifest.model_copy(update={"trained_features": ("moon_phase",)})
    with pytest.raises(GenerationError, match="moon_phase"):
        build_generation(other, files)


def test_generation_survives_the_registry() -> None:
    again = load(dump(MADE), MADE.id)
    none = np.zeros((len(ROWS), 0), np.float32)
    a = again.model.predict(none, ROWS.features[:, None])
    assert np.array_equal(a.expected[:, 0], predicted(ROWS))
    assert again.manifest.features == NAMES
