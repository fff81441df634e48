"""Decoded events as they are gathered: lists of one run of records, then one EventBatch.

Shapes: N = events accepted, U = their users. Times are integer milliseconds, UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from featurestore.columns import EVENT, Erase, EventBatch
from featurestore.events import target_code
from streams.deadletter import Rejected

Words = tuple[int, int, int, int]  # codes, 0 fills up
NO_WORDS: Words = (0, 0, 0, 0)


@dataclass(slots=True)
class Decoded:
    """What a run of records of one source partition holds."""

    batch: EventBatch
    rejected: list[Rejected]  # in log order
    unknown_fields: int = 0  # see the module's text: exact or estimated
    no_id: int = 0  # events that nothing can deduplicate


@dataclass(slots=True)
class Columns:
    """Columns being filled, one entry an event."""

    user: list[int] = field(default_factory=list)
    time_ms: list[int] = field(default_factory=list)
    record_ms: list[int] = field(default_factory=list)
    value: list[int] = field(default_factory=list)
    action: list[int] = field(default_factory=list)
    category: list[int] = field(default_factory=list)
    kind: list[int] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    identity: list[bytes] = field(default_factory=list)
    event_id: list[str | None] = field(default_factory=list)
    target: list[str | None] = field(default_factory=list)
    words: list[Words] = field(default_factory=list)  # empty where interests are not folded


def batch(
    source: int,
    keys: Sequence[bytes],
    columns: Columns,
    erases: list[Erase],
    social: bool = False,
) -> EventBatch:
    """Lists to arrays: each list is converted once, no numpy scalar is made per event.

    social: the fold reads whom an interaction addressed; else its code is that of nobody.
    """
    n = len(columns.time_ms)
    events = np.zeros(n, EVENT)
    events["time_ms"] = columns.time_ms
    events["record_ms"] = columns.record_ms
    events["value_micro"] = columns.value
    events["action"] = columns.action
    events["category"] = columns.category
    events["kind"] = columns.kind
    events["flags"] = columns.flags
    events["source"] = source
    if columns.words:
        events["words"] = columns.words
    if social:
        events["target"] = [target_code(target) for target in columns.target]
    identity = np.frombuffer(b"".join(columns.identity), "<u8").reshape(n, 2)
    events["id_hi"], events["id_lo"] = identity[:, 0], identity[:, 1]
    events["content"] = content(events)
    return EventBatch(
        [key.decode() for key in keys],
        np.array(columns.user, np.int32),
        events,
        np.array(columns.offset, np.int64),
        events["record_ms"].copy(),
        erases,
        columns.event_id,
        columns.target if any(columns.target) else [],
    )


def content(events: npt.NDArray[np.void]) -> npt.NDArray[np.uint32]:
    """Hash of all that the fold reads of each event, (N,): time, value, action, category, kind.

    And whom it addressed and its words, where the fold reads them. Multiply and shift as in
    splitmix64's finaliser, one round a column.
    """
    h = np.full(len(events), 0x9E3779B97F4A7C15, np.uint64)
    for name in ("time_ms", "value_micro", "action", "category", "kind"):
        h = (h ^ events[name].astype(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
        h ^= h >> np.uint64(31)
    # Only where there are any: without, an event's hash is what it was before they were read.
    words = np.ascontiguousarray(events["words"]).view("<u4")[:, 0] if len(events) else h
    for more in (events["target"], words):
        at = np.flatnonzero(more)
        if len(at):
            one = (h[at] ^ more[at].astype(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
            h[at] = one ^ (one >> np.uint64(31))
    h *= np.uint64(0x94D049BB133111EB)
    return (h >> np.uint64(32)).astype(np.uint32)


def merge(decoded: Sequence[Decoded]) -> EventBatch:
    """Join several sources of one partition into one batch; users are deduplicated."""
    if len(decoded) == 1:
        return decoded[0].batch
    users: dict[str, int] = {}
    batches = [one.batch for one in decoded]
    rows = [
        np.fromiter(
            (users.setdefault(user, len(users)) for user in batch.users),
            np.int32,
            len(batch.users),
        )
        for batch in batches
    ]
    if not batches:
        return EventBatch.empty()
    return EventBatch(
        list(users),
        np.concatenate([row[b.user] for row, b in zip(rows, batches, strict=True)]),
        np.concatenate([b.events for b in batches]),
        np.concatenate([b.offset for b in batches]),
        np.concatenate([b.log_ms for b in batches]),
        [
            Erase(int(row[e.user]), e.source, e.record_ms)
            for row, b in zip(rows, batches, strict=True)
            for e in b.erases
        ],
        [event_id for b in batches for event_id in b.event_id],
        [t for b in batches for t in b.target or [None] * b.size]
        if any(b.target for b in batches)
        else [],
    )
