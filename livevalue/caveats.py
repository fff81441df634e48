"""What to know of the topics that a command has read: said by all of them in the same words."""

from __future__ import annotations

from streams import compaction, topics
from streams.errors import StreamsError
from streams.settings import Settings


def compacted(settings: Settings) -> tuple[tuple[str, ...], list[str]]:
    """Input topics that are compacted, and what to say: `warnings` of `--json`, a line each.

    Asks the broker, and blocks meanwhile. Whoever may read a topic may not be allowed to see its
    settings: that is said then, since what was read may be less than was sent.
    """
    try:
        names = topics.compacted(settings)
    except StreamsError as error:
        return (), [f"not known whether an input topic is compacted: {error}"]
    said = compaction.warning(names)
    return names, [said] if said else []


def caveats(settings: Settings) -> list[str]:
    """The second of these alone."""
    return compacted(settings)[1]
