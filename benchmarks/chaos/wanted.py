"""What should have come of a log: states and dead letters, by the slow twins.

Nothing of the worker is used (Codec.decode_slow, featurestore.twin.Twin): one partition at a
time, in one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.chaos.found import Audit
from featurestore.columns import Erase, EventBatch, Outcome
from featurestore.fold_settings import FoldSettings
from featurestore.twin import Twin
from featurestore.update import Side
from streams.codec import Codec
from streams.columns import merge
from streams.settings import Settings

_PARKED = {Outcome.LATE: "late", Outcome.CONFLICT: "conflict", Outcome.FUTURE: "future"}
_FOREVER = (1 << 63) - 1

Place = tuple[str, int, int]  # topic, partition, offset
Letter = tuple[str, Any]  # reason, the record


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user's state must be."""

    side: Side
    erased_ms: int | None  # marker of the latest erasure


def fold(
    settings: Settings,
    p: int,
    logs: Sequence[Sequence[Any]],
    due: dict[Place, Letter],
    may: dict[Place, Letter],
    found: Audit,
) -> dict[str, Wanted]:
    """The log of one partition through the slow twins: -> users with an event or an erasure.

    Adds the dead letters that must exist to `due`, those that may to `may`.
    """
    sources = settings.kafka.sources
    rules = FoldSettings.of(settings.features, sources)
    codec = Codec(settings)
    at = [{record.offset: record for record in log} for log in logs]
    decoded = [codec.decode_slow(s, p, log) for s, log in enumerate(logs)]
    for s, one in enumerate(decoded):
        found.records += len(logs[s])
        for no in one.rejected:
            due[sources[s], p, no.offset] = (no.reason.value, at[s][no.offset])
    batch = merge(decoded)
    twin = Twin(rules)
    outcomes = twin.fold(batch)
    places = [
        (int(event["source"]), offset)
        for event, offset in zip(batch.events, batch.offset.tolist(), strict=True)
    ]

    def park(letters: dict[Place, Letter], i: int, outcome: Outcome) -> None:
        s, offset = places[i]
        letters[sources[s], p, offset] = (_PARKED[outcome], at[s][offset])

    covered = []
    for i, outcome in enumerate(outcomes):
        if outcome in _PARKED:
            park(due, i, outcome)
        elif outcome is Outcome.ERASED:
            covered.append(i)
    # As it was before the latest erasure of each user came, before the one before that, …
    earlier = batch
    while covered:
        earlier = _without_latest(earlier)
        before = Twin(rules).fold(_only(earlier, {int(batch.user[i]) for i in covered}))
        for i in covered:
            if before[i] in _PARKED:
                park(may, i, before[i])
        covered = [i for i in covered if before[i] is Outcome.ERASED]

    wanted = {
        name: Wanted(side, user.erased_ms)
        for name, user in twin.users.items()
        if (side := user.head(rules)).events or user.erased_ms is not None
    }
    found.users += sum(1 for want in wanted.values() if want.side.events)
    found.erased += sum(1 for want in wanted.values() if want.erased_ms is not None)
    found.events += sum(len(want.side.events) for want in wanted.values())
    return wanted


def _without_latest(batch: EventBatch) -> EventBatch:
    """The batch without each user's latest erasure."""
    latest: dict[int, int] = {}
    for erase in batch.erases:
        latest[erase.user] = max(erase.record_ms, latest.get(erase.user, erase.record_ms))
    return replace(batch, erases=[e for e in batch.erases if e.record_ms < latest[e.user]])


def _only(batch: EventBatch, users: set[int]) -> EventBatch:
    """The batch with everything of others erased: they move the clocks, and cost no more."""
    erases = [e for e in batch.erases if e.user in users]
    erases += [Erase(u, 0, _FOREVER) for u in range(len(batch.users)) if u not in users]
    return replace(batch, erases=erases)
