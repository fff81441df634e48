"""The columns that a generation reads, by name: of the fold, and of the table that it carries.

`manifest.features` names them in order; none named means features.FEATURES. Held columns
(features.HELD) are always there for who names them. Columns of edges are
there where the setting `features.social` is on, interests where `features.interests` is and the
generation has their directions (scoring.interests), columns of neighbours where it has a table
(scoring.social). A generation that names none of them is served as if there were none.

Shapes: U users, K query times, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featurestore.features import FEATURES, HELD, SOCIAL, WINDOWS, table
from featurestore.settings import FeatureSettings
from featurestore.state import States
from featurestore.vector import encode, interests
from scoring.errors import GenerationError
from scoring.interests import FILE as DIRECTIONS
from scoring.interests import INTEREST_NAMES, Directions
from scoring.interface import Floats
from scoring.social import FILE as NEIGHBOURS
from scoring.social import NEAR_NAMES, Table

if TYPE_CHECKING:
    from scoring.generation import Generation, Manifest
    from scoring.training.examples import Examples

FEATURE_NAMES = tuple(feature.name for feature in FEATURES)
HELD_NAMES = tuple(feature.name for feature in HELD)
SOCIAL_NAMES = tuple(feature.name for feature in SOCIAL)
KNOWN = frozenset((*FEATURE_NAMES, *HELD_NAMES, *SOCIAL_NAMES, *INTEREST_NAMES, *NEAR_NAMES))


def readable(settings: FeatureSettings) -> frozenset[str]:
    """Columns that a generation may read under these settings.

    >>> "degree" in readable(FeatureSettings()), "degree" in readable(FeatureSettings(social=True))
    (False, True)
    """
    off = (() if settings.social else SOCIAL_NAMES, () if settings.interests else INTEREST_NAMES)
    return KNOWN.difference(*off)


class Inputs:
    """Makes what one generation reads of users."""

    def __init__(
        self, manifest: Manifest, files: Mapping[str, bytes], settings: FeatureSettings
    ) -> None:
        wanted = manifest.features or FEATURE_NAMES
        edges, liked, near = (
            not set(wanted).isdisjoint(names)
            for names in (SOCIAL_NAMES, INTEREST_NAMES, NEAR_NAMES)
        )
        for reads, name in ((edges, "social"), (liked, "interests")):
            if reads and not getattr(settings, name):
                raise GenerationError(
                    f"the generation reads what is not folded: set LIVEVALUE_FEATURES__"
                    f"{name.upper()}=true and rebuild the store (`livevalue recover rebuild"
                    " --dry-run`), or promote another generation"
                )
        for reads, name in ((near, NEIGHBOURS), (liked, DIRECTIONS)):
            if reads and name not in files:
                raise GenerationError(f"the generation lacks {name}: publish it again")
        self._log_start_ms = manifest.log_start_ms
        # What is not read is not encoded: the columns of windows stay 0 where none was trained on.
        self._held = not set(wanted).isdisjoint(HELD_NAMES)
        self._windows = not set(manifest.trained_features or wanted).isdisjoint(WINDOWS)
        self._settings = settings if edges else settings.model_copy(update={"social": False})
        self._table = Table.load(files[NEIGHBOURS]) if near else None
        self._directions = Directions.load(files[DIRECTIONS]) if liked else None
        made = [feature.name for feature in table(self._settings, held=self._held)]
        made += INTEREST_NAMES if liked else ()
        made += NEAR_NAMES if near else ()
        self._pick = positions(made, wanted)

    def encode(self, states: States, when_ms: npt.NDArray[np.int64]) -> Floats:
        """Columns (U, K, F) of users at `when_ms` (U, K)."""
        out = encode(
            states,
            when_ms,
            self._log_start_ms,
            self._settings,
            held=self._held,
            windows=self._windows,
        )
        more = []  # the same at all query times
        if self._directions is not None:
            more.append(self._directions(interests(states.head)))
        if self._table is not None:
            more.append(self._table.join(states.users, states.erased_ms))
        if more:
            wide = [np.broadcast_to(x[:, None], (*out.shape[:2], x.shape[1])) for x in more]
            out = np.concatenate([out, *wide], axis=2)
        return out if self._pick is None else out[:, :, self._pick]


def of_rows(made: Generation, rows: Examples) -> Floats:
    """(N, F) what a generation reads of example rows, as `Inputs` makes it of states."""
    kept = made.files.get(DIRECTIONS)
    return rows.read(made.manifest.features, Directions.load(kept) if kept else None)


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
