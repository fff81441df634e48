"""The law of silence: what readers are told of silent users is what the model says of them."""

from __future__ import annotations

import pytest

from benchmarks import sets
from livevalue.demo.bundled import bundled
from scoring.generation import Generation, prior
from scoring.judging.history import Log
from scoring.judging.silence import MOST, Reader, silences
from scoring.settings import ModelSettings
from streams.settings import Settings

Found = dict[Reader, list[float]]
READERS: tuple[Reader, ...] = ("live", "alone")
MODEL = ModelSettings()
SOURCES = ["browse", "purchase", "interaction"]
FEATURES = Settings().features


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """The year of orders that ships with the package."""
    return sets.log("online_retail", tmp_path_factory.mktemp("sets"))[0]


def p95(log: Log, generation: Generation, model: ModelSettings = MODEL) -> Found:
    """By reader and horizon."""
    found = silences(log, generation, model, FEATURES, SOURCES, instants=8, most=1500)
    assert len(found.days) > 1000
    return {reader: found.p95(reader).tolist() for reader in READERS}


def test_readers_of_a_trained_net_are_told_at_every_horizon(orders: Log) -> None:
    """Both who holds what the worker published and who holds the last event's document."""
    found = p95(orders, bundled())
    assert max(*found["live"], *found["alone"]) <= MOST


def test_the_prior_is_told_at_every_horizon(orders: Log) -> None:
    found = p95(orders, prior(MODEL))
    assert max(found["live"]) < max(found["alone"]) <= MOST


def test_two_knots_are_too_few(orders: Log) -> None:
    """The measure can fail: a straight line over a year is no curve."""
    few = ModelSettings(silence_days=(0, 365), republish_share=1)
    assert min(p95(orders, bundled(), few)["alone"]) > 3 * MOST
