"""The models that can be asked for by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scoring.errors import ScoringError
from scoring.generation import Generation, prior
from scoring.settings import ModelSettings, TrainingSettings
from scoring.training.trainable import SERVED, TRAINED, Ask, family
from scoring.zoo import FAMILIES

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()


def test_an_unknown_family_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(ScoringError, match=r"no family is called 'gnu'.*transformer"):
        family("gnu")


@pytest.mark.parametrize("name", ["prior", SERVED])
def test_what_cannot_be_retrained_is_no_family(name: str) -> None:
    with pytest.raises(ScoringError, match="no family"):
        family(name)


def test_served_is_the_family_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def make(ask: Ask) -> Generation:
        asked.append(ask.training.family)
        return prior(ModelSettings())

    monkeypatch.setitem(TRAINED, "gru", replace(TRAINED["gru"], make=make))
    TRAINED[SERVED].make(Ask(None, [90], TrainingSettings(family="gru")))
    assert asked == ["gru"]


def test_the_page_of_models_names_every_one_that_can_be_asked_for() -> None:
    assert [name for name in {*TRAINED, *FAMILIES} if f"`{name}`" not in PAGE] == []
