"""A source that Kafka compacts: what is lost by that, and the words in which every command says so.

Compaction leaves of each key the last record, and takes the others whenever it likes. What a worker
had folded before stays folded, live; but no replay can give it again from the log (law 4), and what
was taken before a worker read it was never counted. Hence `kafka.compacted`: refuse, unless the
owner of the topic says that this is meant (docs/adr/0011-a-compacted-input-is-refused.md).
"""

from __future__ import annotations

from collections.abc import Iterable


def refusal(topic: str) -> str:
    """Why a worker does not work with a compacted source, and the ways out."""
    return (
        f"{topic} is compacted, so events are missing from it: set its cleanup.policy to delete, "
        "name another topic as source, or set LIVEVALUE_KAFKA__COMPACTED=accept and count what "
        "compaction leaves to be read"
    )


def warning(topics: Iterable[str]) -> str:
    """What to know where compacted sources are read all the same; "" where none is.

    >>> warning([])
    ''
    >>> warning(["events.browse"]).split(":")[0]
    'compacted (events.browse)'
    """
    names = ", ".join(topics)
    if not names:
        return ""
    return (
        f"compacted ({names}): what was compacted away before it was read is not counted, and a "
        "replay, a rebuild or verify from the log alone holds only what the log still holds; keep "
        "an archive (`livevalue archive`), and min.compaction.lag.ms above the longest time that "
        "it, workers or Redis may be behind"
    )
