"""The columns that a family is fitted to where it takes all there are, and what they are read by.

A family that takes them all reads the fold's own features and those held, then the user's edges
(setting `features.social`), his interests (`features.interests`, along directions found in the rows
that it is fitted to) and what is known of his neighbours. Interests are left out as long as a type
of event is unseen: any event can carry words, so a topic that training never saw would move values.

Shapes as in scoring.training.examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from scoring import interests, social
from scoring.inputs import FEATURE_NAMES, HELD_NAMES, SOCIAL_NAMES
from scoring.interests import INTEREST_NAMES, Directions
from scoring.interface import Floats
from scoring.social import NEAR_NAMES, Table
from scoring.training.examples import Examples
from scoring.zoo.seen import moved_by, unseen


@dataclass(frozen=True, slots=True)
class Columns:
    """Names in the order in which they are made, so that nothing is moved when serving."""

    names: tuple[str, ...] = FEATURE_NAMES
    directions: Directions | None = None
    table: Table | None = None

    @classmethod
    def of(cls, rows: Examples, *, near: bool = True) -> Columns:
        """All that rows have; those of neighbours only if asked for.

        Those of the fold and those held alone where neither setting is on and the log has no edge.
        """
        there, directions = {*rows.names}, None
        if rows.words.any() and not moved_by(unseen(rows.seen_types)) & {*INTEREST_NAMES}:
            there.update(INTEREST_NAMES)
            directions = Directions.of(rows.words)
        if not near:
            there.difference_update(NEAR_NAMES)
        order = (*FEATURE_NAMES, *HELD_NAMES, *SOCIAL_NAMES, *INTEREST_NAMES, *NEAR_NAMES)
        names = tuple(name for name in order if name in there)
        return cls(names, directions, rows.table if near else None)

    @classmethod
    def of_settings(cls, rows: Examples) -> Columns:
        """What the settings ask for: neighbours go with the user's own edges."""
        return cls.of(rows, near=SOCIAL_NAMES[0] in rows.names)

    def read(self, rows: Examples) -> Floats:
        """(N, F) of rows."""
        return rows.read(self.names, self.directions)

    def files(self) -> dict[str, bytes]:
        """What a generation carries, so that the scorer can make them."""
        made = {}
        if self.table is not None:
            made[social.FILE] = self.table.dump()
        if self.directions is not None:
            made[interests.FILE] = self.directions.dump()
        return made

    def facts(self) -> dict[str, int]:
        """For the manifest: a table is no parameter, though it stands beside them."""
        return {} if self.table is None else {"users_with_neighbours": len(self.table.keys)}


FOLD: Final = Columns()  # the fold's own features
