"""The rule for a Redis that was rolled back behind what is published.

Redis was rolled back if the published identity is not in the outbox that a claim returned;
positions may be equal all the same. Then nothing is published, and processing does not wait for
the outbox, until the watermark has reached the published positions in every source. After that
each user touched since is published once under seq = max(both) + 1, and only dead letters at or
beyond their source's published position (streams.held does it).

Where another store served when the last commit was published, the roll-back undid a flip, too. What
that store's sweep has published no outbox of ours names, so every user is published again. So it is
where pages of a sweep of this store were undone that had been published, or a roll-back made good,
or a part of one: a Redis that went back and then forward again has folded what was said then, and
says it otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from featurestore.store import Identity, OutboxEntry, Watermark
from streams.emit import Parked, Published


def unpublished(
    outbox: Sequence[OutboxEntry], published: Identity | None
) -> Sequence[OutboxEntry] | None:
    """Entries after the published one; None where it is missing: Redis was rolled back."""
    if published is None:
        return outbox
    at = [i for i, entry in enumerate(outbox) if entry.identity == published]
    return outbox[at[-1] + 1 :] if at else None


@dataclass(slots=True)
class Rollback:
    """One roll-back on its way to be made good."""

    published: Published
    users: set[str]  # touched since: each is published once
    parked: list[Parked]  # dead letters at or beyond the published positions
    everybody: bool = False  # is to be published again, and not who was touched alone

    @classmethod
    def behind(
        cls, published: Published, outbox: Sequence[OutboxEntry], store: str, known: int
    ) -> Rollback:
        """A store, by its name, whose outbox lacks what was published last.

        known: the last commit of which it knows that it was published.
        """
        # What was said in part only the store that said it has in its outbox.
        partly = published.begun not in (0, *(entry.identity.seq for entry in outbox))
        everybody = published.store not in ("", store) or published.swept > known or partly
        made = cls(published, set(), [], everybody)
        for entry in outbox:
            made.saw(entry.users, [Parked(letter) for letter in entry.letters])
        return made

    def saw(self, users: Iterable[str], parked: Iterable[Parked]) -> None:
        """Take in what was committed and is not published."""
        self.users.update(users)
        ends = self.published.positions
        self.parked += [x for x in parked if x.letter.offset >= ends[x.letter.source]]

    def caught_up(self, mark: Watermark | None) -> bool:
        """Whether the watermark has reached the published positions in every source."""
        if mark is None:
            return False
        pairs = zip(mark.positions, self.published.positions, strict=True)
        return all(have >= need for have, need in pairs)
