"""The columns that a generation reads, by name: of the fold, and of the table that it carries.

`manifest.features` names them in order; none named means features.FEATURES. Columns of edges are
there where the setting `features.social` is on, columns of neighbours where the generation has a
table (scoring.social). A generation that names neither is served as if there were neither.

Shapes: U users, K query times, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featurestore.features import FEATURES, SOCIAL, table
from featurestore.settings import FeatureSettings
from featurestore.state import States
from featurestore.vector import encode
from scoring.errors import GenerationError
from scoring.interface import Floats
from scoring.social import FILE, NEAR_NAMES, Table

if TYPE_CHECKING:
    from scoring.generation import Manifest

FEATURE_NAMES = tuple(feature.name for feature in FEATURES)
SOCIAL_NAMES = tuple(feature.name for feature in SOCIAL)
KNOWN = frozenset((*FEATURE_NAMES, *SOCIAL_NAMES, *NEAR_NAMES))


class Inputs:
    """Makes what one generation reads of users."""

    def __init__(
        self, manifest: Manifest, files: Mapping[str, bytes], settings: FeatureSettings
    ) -> None:
        wanted = manifest.features or FEATURE_NAMES
        edges = bool(set(wanted) & set(SOCIAL_NAMES))
        near = bool(set(wanted) & set(NEAR_NAMES))
        if edges and not settings.social:
            raise GenerationError(
                "the generation reads edges of the social graph, which are not folded: set"
                " LIVEVALUE_FEATURES__SOCIAL=true and rebuild the store (`livevalue recover"
                " rebuild --dry-run`), or promote another generation"
            )
        if near and FILE not in files:
            raise GenerationError(f"the generation lacks {FILE}: publish it again")
        self._log_start_ms = manifest.log_start_ms
        # What is not read is not encoded.
        self._settings = settings if edges else settings.model_copy(update={"social": False})
        self._table = Table.load(files[FILE]) if near else None
        made = [feature.name for feature in table(self._settings)]
        if near:
            made += NEAR_NAMES
        self._pick = positions(made, wanted)

    def encode(self, states: States, when_ms: npt.NDArray[np.int64]) -> Floats:
        """Columns (U, K, F) of users at `when_ms` (U, K)."""
        out = encode(states, when_ms, self._log_start_ms, self._settings)
        if self._table is not None:
            near = self._table.join(states.users, states.erased_ms)
            wide = np.broadcast_to(near[:, None], (*out.shape[:2], near.shape[1]))
            out = np.concatenate([out, wide], axis=2)
        return out if self._pick is None else out[:, :, self._pick]


def positions(made: Sequence[str], wanted: Sequence[str]) -> npt.NDArray[np.intp] | None:
    """Where `wanted` stand in `made`; None where the two are the same.

    >>> positions(["a", "b"], ["b"]), positions(["a", "b"], ["a", "b"])
    (array([1]), None)
    """
    if list(made) == list(wanted):
        return None
    place = {name: at for at, name in enumerate(made)}
    missing = [name for name in wanted if name not in place]
    if missing:
        raise GenerationError(
            f"the generation reads features that this version does not make"
            f" ({', '.join(missing[:3])}): retrain, or run the version that it was made with"
        )
    return np.array([place[name] for name in wanted], np.intp)
