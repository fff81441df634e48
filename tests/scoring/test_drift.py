"""Drift: the same population is none, a shifted one is, and generations of before stay readable."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from featurestore.features import FEATURES
from featurestore.settings import FeatureSettings
from scoring import inputs
from scoring.generation import MANIFEST, Bins, Generation, Manifest, dump, load, prior
from scoring.generation import build as publish
from scoring.inputs import HELD_NAMES, SOCIAL_NAMES
from scoring.interests import INTEREST_NAMES
from scoring.retraining.drift import (
    GROWING,
    LEAST_SEEN,
    STABLE,
    Tally,
    bins,
    psi,
    read_by,
    with_reference,
)
from scoring.retraining.settings import DRIFTED
from scoring.settings import ModelSettings
from scoring.social import NEAR_NAMES
from scoring.training.examples import Examples, build
from scoring.zoo import graph
from tests.scoring import test_interests, test_social
from tests.scoring.before import generation_of_before
from tests.scoring.shoplog import batches, cutoff_days, shop

NAMES = (*(feature.name for feature in FEATURES), *HELD_NAMES)


def rows(day: int, seed: int = 0, times: float = 1.0) -> Examples:
    """All users of the shop at one cut-off; orders `times` as large."""
    user, time_ms, micro = shop(2500, 240, seed)
    log = batches(user, time_ms, (micro * times).astype(np.int64))
    horizons = [days * 86_400 for days in ModelSettings().horizons_days]
    return build(log, FeatureSettings(), ["s0"], horizons, cutoff_days([day]))


def said(examples: Examples) -> npt.NDArray[np.float64]:
    """Something that depends on the users as predictions do, (N, H)."""
    value = examples.features[:, [NAMES.index("value_90d")]].astype(np.float64)
    out: npt.NDArray[np.float64] = value * np.array([1.0, 2.0, 3.0])
    return out


def trained() -> Generation:
    """An untrained model that says which columns it was trained on: those that an order moves."""
    made = prior(ModelSettings())
    manifest = made.manifest.model_copy(
        update={
            "features": NAMES,
            "trained_features": tuple(n for n in NAMES if "browse" not in n),
        }
    )
    return publish(manifest, {n: made.files[n] for n in made.manifest.sha256})


@pytest.fixture(scope="module")
def then() -> Examples:
    return rows(200)


def index(reference: Generation, now: Examples) -> dict[str, float]:
    kept = reference.manifest.reference
    assert kept is not None
    tally = Tally(kept, reference.manifest.horizons_s, read_by(reference.manifest))
    half = len(now) // 2
    first, rest = now.rows(np.arange(half)), now.rows(np.arange(half, len(now)))
    for page in (first, rest):
        tally.add(inputs.of_rows(reference, page), said(page))
    return tally.psi()


def test_the_same_population_has_not_drifted_at_all(then: Examples) -> None:
    found = index(with_reference(trained(), then, said(then)), then)
    assert max(found.values()) < 1e-4
    assert {"d7.expected", "d90.expected", "since_order"} <= set(found)


def test_other_users_of_the_same_shop_are_stable(then: Examples) -> None:
    found = index(with_reference(trained(), then, said(then)), rows(200, seed=1))
    assert max(found.values()) < STABLE


def test_users_who_spend_twice_as_much_have_drifted(then: Examples) -> None:
    found = index(with_reference(trained(), then, said(then)), rows(200, times=2.0))
    moved = {name for name, value in found.items() if value > DRIFTED}
    assert {"log_mean_order_value", "d90.expected"} <= moved
    assert "since_order" not in moved
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_totals_and_ages_are_not_compared(then: Examples) -> None:
    reference = with_reference(trained(), then, said(then)).manifest.reference
    assert reference is not None
    assert {*NAMES, *SOCIAL_NAMES, *NEAR_NAMES} >= GROWING
    assert not GROWING & set(reference.columns)
    assert {"decayed_orders_2", "orders_30d"} <= set(reference.columns)
    assert "since_browse" not in reference.columns, "the model was not trained on it"


def test_what_was_held_is_compared_and_a_generation_of_before_as_far_as_it_kept(
    then: Examples,
) -> None:
    made = with_reference(trained(), then, said(then))
    more = index(made, rows(200, times=2.0))
    moved = {f"held_value_{n}" for n in (1, 2, 3)}
    assert min(more[name] for name in moved) > DRIFTED
    reference = made.manifest.reference
    assert reference is not None
    fewer = {name: of for name, of in reference.columns.items() if name not in HELD_NAMES}
    old = reference.model_copy(update={"columns": fewer})
    files = {name: made.files[name] for name in made.manifest.sha256}
    before = publish(made.manifest.model_copy(update={"reference": old}), files)
    assert index(load(dump(before), before.id), rows(200, times=2.0)) == {
        name: of for name, of in more.items() if name not in HELD_NAMES
    }


@pytest.mark.parametrize(
    ("log", "beyond"),
    [
        (test_social.ROWS, {"since_edge", "decayed_edges_1", *NEAR_NAMES[:3]}),
        (test_interests.ROWS, {*INTEREST_NAMES[:2]}),
    ],
    ids=["edges", "words"],
)
def test_edges_neighbours_and_interests_are_compared_where_they_are_read(
    log: Examples, beyond: set[str]
) -> None:
    def predicted(of: Examples) -> npt.NDArray[np.float64]:
        out: npt.NDArray[np.float64] = of.value.astype(np.float64)
        return out

    newest = log.rows(log.window == log.window.max())
    made = with_reference(graph.train(log), newest, predicted(newest))
    kept = made.manifest.reference
    assert kept is not None
    assert beyond <= set(kept.columns)
    watched = set(made.manifest.trained_features) - GROWING
    assert set(kept.columns) == watched | {"d7.expected", "d30.expected"}
    read = inputs.of_rows(made, newest).copy()
    names = read_by(made.manifest)
    for name in beyond:
        read[:, names.index(name)] += 9
    tally = Tally(kept, made.manifest.horizons_s, names)
    tally.add(read, predicted(newest))
    found = tally.psi()
    assert {name for name, value in found.items() if value > DRIFTED} == beyond


def test_users_who_left_long_ago_are_not_compared(then: Examples) -> None:
    reference = with_reference(trained(), then, said(then)).manifest.reference
    assert reference is not None
    recent = then.features[:, NAMES.index("since_event")] <= np.log1p(90) + 1e-6
    assert reference.users == int(recent.sum()) < len(then)


def test_a_reference_is_small_and_its_shares_are_whole(then: Examples) -> None:
    made = with_reference(trained(), then, said(then))
    assert len(made.manifest.encode()) < 24_000
    assert made.manifest.reference is not None
    for name, spread in made.manifest.reference.columns.items():
        assert len(spread.shares) == len(spread.edges) + 1 <= 10, name
        assert sum(spread.shares) == pytest.approx(1, abs=1e-3), name
    again = load(dump(made), made.id)
    assert again.manifest == made.manifest
    assert made.id == with_reference(trained(), then, said(then)).id


def test_too_few_users_are_no_reference_and_no_verdict(then: Examples) -> None:
    few = then.rows(np.arange(LEAST_SEEN - 1))
    assert with_reference(trained(), few, said(few)).id == trained().id
    assert index(with_reference(trained(), then, said(then)), few) == {}


def test_an_atom_is_a_bin_of_its_own() -> None:
    values = np.concatenate([np.zeros(950), np.linspace(1, 2, 50)])
    spread = bins(values)
    assert spread.edges == (0.5,)
    assert spread.shares == (0.95, 0.05)
    assert bins(np.zeros(10)) == Bins(edges=(), shares=(1.0,))


def test_an_empty_bin_is_no_infinity() -> None:
    index = psi(Bins(edges=(1.0,), shares=(1.0, 0.0)), 1000, np.array([0, 1000]))
    assert DRIFTED < index < 20


def test_an_empty_bin_counts_half_a_user() -> None:
    empty_then = Bins(edges=(1.0,), shares=(1.0, 0.0))  # of 400 users: .5 / 400
    came = (0.99 - 1.0) * np.log(0.99 / 1.0) + (0.01 - 0.00125) * np.log(0.01 / 0.00125)
    assert psi(empty_then, 400, np.array([198, 2])) == pytest.approx(came, rel=1e-9)
    filled_then = Bins(edges=(1.0,), shares=(0.99, 0.01))  # empty now, of 200 users: .5 / 200
    went = (1.0 - 0.99) * np.log(1.0 / 0.99) + (0.0025 - 0.01) * np.log(0.0025 / 0.01)
    assert psi(filled_then, 400, np.array([200, 0])) == pytest.approx(went, rel=1e-9)


def test_generations_of_before_keep_their_ids() -> None:
    old = generation_of_before()
    assert old.id.startswith("ed1e212a27d3")
    assert old.manifest.reference is None
    assert load(dump(old), old.id).id == old.id
    assert publish(old.manifest, {n: old.files[n] for n in old.manifest.sha256}).id == old.id
    raw = prior(ModelSettings()).files[MANIFEST]
    assert b"reference" not in raw
    assert Manifest.model_validate_json(raw).reference is None
