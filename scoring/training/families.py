"""The module behind a net's name: what it makes, and the settings that it does not take.

torch is imported by those modules: the extra `train`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from scoring.errors import ScoringError
from scoring.settings import TrainingSettings
from scoring.zoo import NETS

if TYPE_CHECKING:
    from scoring.zoo.nets import Frame, Net


class Family(Protocol):
    """What the module of a net offers.

    Some offer RECIPE, too: settings that they do not take; and COLUMNS: the only ones that they
    read, of the fold's features.
    """

    def new(self, frame: Frame, settings: TrainingSettings) -> Net: ...
    def export(self, net: Net) -> dict[str, bytes]: ...


def family(name: str) -> Family:
    """The module that makes and exports the nets of a family."""
    if name not in NETS:
        raise ScoringError(
            f"{name!r} is no net that is trained here; there are {', '.join(NETS)}: set"
            " training.family to one of them"
        )
    return cast("Family", import_module(NETS[name]))


def resolved(settings: TrainingSettings) -> TrainingSettings:
    """The settings that a family trains with: its own recipe over what is set, where it has one."""
    recipe = getattr(family(settings.family), "RECIPE", {})
    return settings.model_copy(update=recipe)
