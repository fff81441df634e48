"""Model families, one a file; no family imports another.

A family's module offers `load(manifest, files) -> ValueModel`, imports no torch at its top, and is
named here. It is imported when a generation of it is loaded, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, cast

from scoring.errors import GenerationError

if TYPE_CHECKING:
    from scoring.generation import Manifest
    from scoring.interface import ValueModel

    Loader = Callable[[Manifest, Mapping[str, bytes]], ValueModel]


def _family(module: str) -> Loader:
    def load(manifest: Manifest, files: Mapping[str, bytes]) -> ValueModel:
        made = cast("Loader", import_module(module).load)
        try:
            return made(manifest, files)
        except KeyError as error:  # a file, an array or a parameter
            raise GenerationError(
                f"the generation lacks {error}: publish it again, or promote another"
            ) from error

    return load


FAMILIES: dict[str, Loader] = {
    "mingru": _family("scoring.zoo.mingru"),
    "gru": _family("scoring.zoo.gru"),
    "transformer": _family("scoring.zoo.transformer"),
    "dnn": _family("scoring.zoo.dnn"),
    "mlp": _family("scoring.zoo.mlp"),
    "blend": _family("scoring.zoo.blend"),
    "gbm": _family("scoring.zoo.gbm"),
    "linear": _family("scoring.zoo.linear"),
    "graph": _family("scoring.zoo.graph"),
    "polynomial": _family("scoring.zoo.polynomial"),
    "svr": _family("scoring.zoo.svr"),
    "svr_rff": _family("scoring.zoo.svr"),
    "prior": _family("scoring.zoo.prior"),
}

# Families that scoring.training.loop trains: the modules of their nets, which load torch. Each
# offers `new(frame, settings)` and `export(net)`, and RECIPE, the settings that it keeps to a
# paper's.
NETS: dict[str, str] = {
    "mingru": "scoring.zoo.mingru_net",
    "gru": "scoring.zoo.gru_net",
    "transformer": "scoring.zoo.transformer_net",
    "dnn": "scoring.zoo.dnn",
    "mlp": "scoring.zoo.mlp",
}
