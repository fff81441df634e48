"""What a generation costs is told, and is no part of its bytes."""

from __future__ import annotations

import pytest

from scoring import cost
from scoring.generation import prior
from scoring.settings import ModelSettings
from tests.scoring.tiny import tiny


def test_a_carry_costs_bytes_and_time_and_its_absence_none() -> None:
    with_carry = cost.measure(tiny(tokens=14, features=86))
    assert with_carry.carry_bytes == 2 * 4 * 4  # two layers of width 4, float32
    assert 0 < with_carry.us_per_event < 1000
    without = cost.measure(prior(ModelSettings()))
    assert (without.carry_bytes, without.us_per_event) == (0, 0.0)
    assert without.us_per_user > 0


def test_more_knots_of_silence_cost_more() -> None:
    made = tiny(tokens=14, features=86)
    few = cost.measure(made, ModelSettings(silence_days=(0, 30)))
    many = cost.measure(made, ModelSettings(silence_days=tuple(range(60))))
    assert many.us_per_user > 3 * few.us_per_user


def test_measuring_changes_no_generation() -> None:
    made = tiny(tokens=14, features=86)
    cost.measure(made)
    assert made.id == tiny(tokens=14, features=86).id


@pytest.mark.parametrize(("params", "counted"), [({"parameters": 7}, 7), ({}, None)])
def test_parameters_are_those_that_the_manifest_counts(
    params: dict[str, int], counted: int | None
) -> None:
    made = tiny()
    from scoring.generation import build

    files = {name: made.files[name] for name in made.manifest.sha256}
    again = build(made.manifest.model_copy(update={"params": params}), files)
    assert cost.parameters(again) == counted
