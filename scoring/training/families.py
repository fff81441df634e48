"""What each family takes of the settings `training`, and the module behind a net's name.

A setting that a family does not take is never passed over in silence: whoever trains one family
refuses it (`refuse_untaken`), whoever compares several names them (`passed_over`). What counts is a
value other than the default, so that a default can be written down for all of them.

torch is imported by the modules of nets: the extra `train`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from scoring.errors import ScoringError
from scoring.settings import TrainingSettings
from scoring.zoo import NETS

if TYPE_CHECKING:
    from scoring.zoo.nets import Frame, Net


# Whoever trains: which family, and which users judge it.
ALL = frozenset(("family", "held_out", "seed"))
_LOOP = frozenset(
    (
        *("loss", "optimizer", "rate", "epochs", "patience", "users_per_batch", "least_orders"),
        *("decay", "l1", "dropout", "cutoff_dropout"),
    )
)
_STEPS = frozenset(("width", "event_dropout", "time_jitter_days"))  # of what reads events
_TEACHERS = frozenset(("teachers", "teacher_seeds", "teacher_weight"))
TAKES: Mapping[str, frozenset[str]] = {
    "mingru": _LOOP | _STEPS | _TEACHERS,
    "gru": _LOOP | _STEPS,
    "transformer": _LOOP | _STEPS | {"window"},
    "dnn": _LOOP,
    "mlp": frozenset(("rate", "least_orders", "cutoff_dropout")),  # its RECIPE for the rest
    "blend": _LOOP | _STEPS | _TEACHERS,  # what its members take: one of them is the minGRU
    **dict.fromkeys(("gbm", "linear", "graph", "polynomial", "svr", "svr_rff"), frozenset()),
}


def takes(settings: TrainingSettings) -> frozenset[str]:
    """Names of the settings that the family takes, or a teacher of its.

    >>> sorted(takes(TrainingSettings(family="gbm")))
    ['family', 'held_out', 'seed']
    >>> "window" in takes(TrainingSettings(teachers=("transformer",)))
    True
    """
    own = TAKES[settings.family]
    teachers = settings.teachers if "teachers" in own else ()
    return ALL.union(own, *(TAKES.get(name, ()) for name in teachers))


def untaken(settings: TrainingSettings) -> tuple[str, ...]:
    """Settings that were changed, and that the family does not take."""
    default, taken = TrainingSettings(), takes(settings)
    return tuple(
        name
        for name in TrainingSettings.model_fields
        if name not in taken and getattr(settings, name) != getattr(default, name)
    )


def refuse_untaken(settings: TrainingSettings) -> None:
    """ScoringError where there are some, with the families that take them."""
    found = [f"training.{name} ({', '.join(takers(name))})" for name in untaken(settings)]
    if found:
        raise ScoringError(
            f"family {settings.family!r} does not take what is set of {'; '.join(found)}: take it"
            " out of the settings, or name a family that takes it"
        )


def takers(name: str) -> list[str]:
    """Families that take a setting.

    >>> takers("teachers"), takers("window")
    (['mingru', 'blend'], ['transformer'])
    """
    return [family for family, own in TAKES.items() if name in own]


def passed_over(names: Iterable[str], settings: TrainingSettings) -> str:
    """What to say where several families are compared; empty where each takes what is set."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in dict.fromkeys(names):
        if name in TAKES:
            over = untaken(settings.model_copy(update={"family": name}))
            found.setdefault(over, []).append(name)
    said = [
        f"{' and '.join(who)} {'do' if len(who) > 1 else 'does'} not take"
        f" {' and '.join(f'training.{name}' for name in over)}"
        for over, who in found.items()
        if over
    ]
    return f"{'; '.join(said)}: trained without" if said else ""


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
