"""Trained nets on edges, interests and neighbours: read where folded, standardised in training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is in the extra `train`")

from featurestore.columns import EventBatch  # noqa: E402
from featurestore.features import WINDOWS  # noqa: E402
from featurestore.settings import FeatureSettings  # noqa: E402
from featurestore.vector import encode  # noqa: E402
from scoring import inputs  # noqa: E402
from scoring.generation import Generation, Manifest  # noqa: E402
from scoring.inputs import FEATURE_NAMES, HELD_NAMES, SOCIAL_NAMES  # noqa: E402
from scoring.interests import INTEREST_NAMES  # noqa: E402
from scoring.judging.metrics import ngini  # noqa: E402
from scoring.scorer import Scorer  # noqa: E402
from scoring.settings import TrainingSettings  # noqa: E402
from scoring.social import NEAR_NAMES  # noqa: E402
from scoring.training import loop  # noqa: E402
from scoring.training.columns import Columns  # noqa: E402
from scoring.training.examples import ExampleBuilder, Examples, build  # noqa: E402
from scoring.training.forecasts import score  # noqa: E402
from scoring.training.splits import held_out, newest  # noqa: E402
from tests.scoring import test_interests, test_social  # noqa: E402
from tests.scoring.before import generation_of_before  # noqa: E402
from tests.scoring.shoplog import DAY_MS, START_MS  # noqa: E402
from tests.scoring.test_social import CUTS, HORIZONS_S, LOG, MODEL, live  # noqa: E402

EDGES, WORDS = test_social.ROWS, test_interests.ROWS
QUICK = TrainingSettings(
    family="dnn", epochs=40, width=8, users_per_batch=64, rate=5e-3, least_orders=20
)


def trained(rows: Examples, how: TrainingSettings = QUICK) -> Generation:
    return loop.generation(loop.train(rows, how), rows, calibrate_on=newest(rows, 1))


def plain(rows: Examples) -> Examples:
    """The same rows, of a fold with neither setting on."""
    nothing = np.zeros((len(rows), 0), np.float32)
    assert rows.extra_names[: len(HELD_NAMES)] == HELD_NAMES
    held = rows.extra[:, : len(HELD_NAMES)]
    return replace(rows, extra=held, extra_names=HELD_NAMES, words=nothing, table=None)


@pytest.mark.parametrize(("rows", "gain"), [(EDGES, 0.03), (WORDS, 0.02)], ids=["edges", "words"])
def test_a_net_learns_from_the_columns_that_the_settings_add(rows: Examples, gain: float) -> None:
    older, last = rows.rows(rows.window < 3), rows.rows(rows.window == 3)

    def ranks(of: Examples) -> float:
        said = score(trained(of), last).expected[:, 0, 1]
        return ngini(last.value[:, 1], said.astype(np.float64))

    assert ranks(older) > ranks(plain(older)) + gain


@pytest.mark.parametrize(
    ("rows", "on", "log"),
    [
        (EDGES, FeatureSettings(social=True), LOG),
        (WORDS, FeatureSettings(interests=True), test_interests.TOLD),
    ],
    ids=["edges", "words"],
)
def test_what_a_net_is_served_is_what_a_row_of_that_instant_holds(
    rows: Examples, on: FeatureSettings, log: list[tuple[int, EventBatch]]
) -> None:
    made = trained(rows, QUICK.model_copy(update={"family": "mingru", "epochs": 1}))
    until = rows.clock_ms + 1  # the table of neighbours is of the log's clock
    states = live(log, until, on)
    builder = ExampleBuilder(
        on, ["events"], HORIZONS_S, np.array([until]), made.manifest.log_start_ms, 0
    )
    for p, batch in log:
        builder.add(p, batch)
    again = builder.finish(until)
    when = np.full((len(states.users), 1), until)
    served = Scorer(made, MODEL, on).features(states, when)[:, 0]
    place = {again.users[u]: i for i, u in enumerate(again.user.tolist())}
    wanted = inputs.of_rows(made, again)[[place[user] for user in states.users]]
    read = np.array([name in made.manifest.trained_features for name in made.manifest.features])
    np.testing.assert_allclose(served[:, read], wanted[:, read], rtol=1e-5, atol=1e-5)
    assert {*HELD_NAMES} <= {*made.manifest.trained_features}
    # what bends in silence: docs/adr/0010-nets-read-no-windows.md
    assert not {*WINDOWS, "since_refund"} & {*made.manifest.trained_features}
    beyond = {*made.manifest.trained_features} - {*FEATURE_NAMES}
    assert beyond & ({*INTEREST_NAMES} if on.interests else {"degree", "near_value"})


def test_who_was_trained_on_windows_is_served_them_and_who_was_not_is_spared_them() -> None:
    states = live(LOG, int(CUTS[1]))
    when = states.head["last_ms"][:, None] + np.array([0, 9]) * DAY_MS
    every = encode(states, when, START_MS, FeatureSettings())
    windows = np.array([name in WINDOWS for name in FEATURE_NAMES])
    assert every[:, :, windows].any()
    manifest = Manifest(
        family="prior", horizons_s=HORIZONS_S, features=FEATURE_NAMES, log_start_ms=START_MS
    )
    before = manifest.model_copy(update={"trained_features": ("orders", WINDOWS[0])})
    assert (
        inputs.Inputs(before, {}, FeatureSettings()).encode(states, when).tobytes()
        == every.tobytes()
    )
    old = generation_of_before()  # as Scorer serves it
    assert (
        inputs.Inputs(old.manifest, old.files, FeatureSettings())
        .encode(states, when)[:, :, windows]
        .any()
    )
    now = manifest.model_copy(update={"trained_features": ("orders", "held_orders_1")})
    spared = inputs.Inputs(now, {}, FeatureSettings()).encode(states, when)
    assert not spared[:, :, windows].any()
    assert spared[:, :, ~windows].tobytes() == every[:, :, ~windows].tobytes()


def test_columns_are_standardised_by_the_users_trained_on_alone() -> None:
    how = QUICK.model_copy(update={"epochs": 1})
    found = loop.train(EDGES, how)
    fitted = EDGES.rows(~held_out(EDGES, how) & EDGES.mask.any(axis=1))
    assert 0 < len(fitted) < len(EDGES)
    x = Columns.of(fitted).read(fitted).astype(np.float64)
    np.testing.assert_allclose(found.net.feature_mean.numpy(), x.mean(axis=0), rtol=1e-5)
    assert found.columns.names == (*FEATURE_NAMES, *HELD_NAMES, *SOCIAL_NAMES, *NEAR_NAMES)


@pytest.mark.parametrize("family", ["mingru", "dnn"])
def test_edges_in_the_log_change_no_byte_of_a_net_where_they_are_not_folded(family: str) -> None:
    how = QUICK.model_copy(update={"family": family, "epochs": 1})
    bare = [(p, replace(batch, target=[])) for p, batch in LOG]
    off = [
        build(x, FeatureSettings(), ["events"], HORIZONS_S, CUTS, START_MS, 0) for x in (LOG, bare)
    ]
    assert NEAR_NAMES[0] in off[0].names, "or the claim is empty"
    one, other = (trained(rows, how) for rows in off)
    assert one.id == other.id
    assert one.manifest.features == (*FEATURE_NAMES, *HELD_NAMES)


def test_the_textbook_baseline_carries_nothing_that_it_does_not_read() -> None:
    made = trained(EDGES, QUICK.model_copy(update={"family": "mlp"}))
    assert made.manifest.features == FEATURE_NAMES
    assert not {*made.files} & {"neighbours.safetensors", "interests.safetensors"}


def test_words_are_not_read_where_a_type_of_event_was_never_seen() -> None:
    """Any event can carry words: a new topic would move the values of all who read them."""
    assert INTEREST_NAMES[0] in Columns.of(WORDS).names
    deaf = replace(WORDS, seen_types=("purchase", "interaction"))
    assert not {*Columns.of(deaf).names} & {*INTEREST_NAMES}
    assert Columns.of(deaf).directions is None
