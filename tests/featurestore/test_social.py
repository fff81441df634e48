"""Edges of the social graph in the fold: what a user without one pays, how far a degree is off."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from featurestore.blob import WITH_EDGES, WITHOUT_EDGES
from featurestore.events import target_code
from featurestore.features import FEATURES, SOCIAL, table
from featurestore.fold_settings import DAY_MS
from featurestore.settings import FeatureSettings
from featurestore.state import States
from featurestore.vector import counted, encode
from tests.featurestore.logs import START_MS, Record, draw_event, play, settings

ON, OFF = FeatureSettings(social=True), FeatureSettings()
NAMES = [feature.name for feature in table(ON)]


def talk(targets: list[str | None], user: str = "ada", seed: int = 0) -> States:
    """One user's interactions, an hour apart."""
    chance, records = random.Random(seed), []
    for i, target in enumerate(targets):
        now = START_MS + i * 3_600_000
        event = draw_event(chance, now, 0, late=False)
        event = replace(event, time_ms=now, target=target_code(target), words=(0, 0, 0, 0))
        records.append(Record(0, i, user, now, event))
    return play(records, [7], settings(1)).states()


def column(states: States, name: str, days: int = 0) -> float:
    when = states.head["last_ms"] + days * DAY_MS
    return float(encode(states, when, None, ON)[0, NAMES.index(name)])


def test_a_degree_is_exact_for_one_and_within_three_sigma_of_many() -> None:
    assert column(talk(["bo"] * 40), "degree") == pytest.approx(np.log1p(1), rel=3e-3)
    for seed in range(3):
        for others, sigma in ((20, 0.06), (300, 0.06), (1000, 0.11)):
            names = {f"{seed}-{i}" for i in range(others)}
            codes = len({target_code(name) for name in names})
            assert counted(np.array([codes]))[0] == pytest.approx(others, rel=3 * sigma)


def test_addressing_the_same_again_is_an_edge_but_no_new_degree() -> None:
    once, twice = talk(["bo", "cy", None]), talk(["bo", "cy", None, "bo", "cy"])
    assert column(once, "degree") == column(twice, "degree")
    assert (int(once.head["edges"][0]), int(twice.head["edges"][0])) == (2, 4)
    assert column(twice, "decayed_edges_1") > column(once, "decayed_edges_1")


def test_edges_fade_while_nobody_is_addressed() -> None:
    states = talk(["bo", "cy"])
    assert column(states, "decayed_edges_1", 30) < column(states, "decayed_edges_1")
    assert column(states, "since_edge", 30) > column(states, "since_edge")
    assert column(states, "degree", 30) == column(states, "degree")


def test_who_addresses_nobody_is_stored_as_before_the_setting_was_known() -> None:
    assert {blob[0] for blob in talk([None, None]).encode()} == {WITHOUT_EDGES}
    with_edge = talk([None, "bo"])
    (blob,) = with_edge.encode()
    assert blob[0] == WITH_EDGES
    again = States.decode(with_edge.users, [blob])
    assert again.head.tobytes() == with_edge.head.tobytes()
    assert again.settled.tobytes() == with_edge.settled.tobytes()


def test_social_columns_stand_behind_the_others_and_change_none() -> None:
    states = talk(["bo", None, "cy"])
    when = states.head["last_ms"] + DAY_MS
    on, off = (encode(states, when, START_MS, how) for how in (ON, OFF))
    assert on[:, : len(FEATURES)].tobytes() == off.tobytes()
    assert NAMES[len(FEATURES) :] == [feature.name for feature in SOCIAL]
