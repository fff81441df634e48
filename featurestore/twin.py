"""The whole fold, slow and readable: a log through all rules, with lists and dictionaries.

`Twin.fold(batch)` does what fold.fold does, user by user and event by event; tests hold the two
equal. Read this one to know what the rules are, fold.py and decide.py to know how they are fast.

Times are integer milliseconds, UTC; None where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from featurestore.columns import LATE, NO_TIME, EventBatch, Outcome
from featurestore.fold_settings import FoldSettings
from featurestore.update import Event, Side, fold_in


@dataclass(frozen=True, slots=True, order=True)
class Seen:
    """One event as remembered for deduplication."""

    source: int
    time_ms: int
    id_hi: int
    id_lo: int
    content: int
    record_ms: int

    @property
    def identity(self) -> tuple[int, int]:
        return self.id_hi, self.id_lo


@dataclass(slots=True)
class User:
    """State of one user: settled part, tail, and what is remembered."""

    settled: Side = field(default_factory=Side)
    tail: list[Event] = field(default_factory=list)  # in fold order
    ids: list[Seen] = field(default_factory=list)  # left the tail before their time
    ring: list[Seen] = field(default_factory=list)  # latest value events, own event times
    erased_ms: int | None = None
    settled_record_ms: int | None = None  # largest record timestamp of the settled events
    overtaken: int = 0  # events folded although a later one was settled already
    capped: int = 0  # events that the tail cap settled before their time
    split: int = 0  # erasures that took settled events with them which came after

    def head(self, settings: FoldSettings) -> Side:
        """Settled part and tail, folded."""
        return fold_in(self.settled, self.tail, settings)


def fold_order(event: Event) -> tuple[int, ...]:
    """Key of the fold's order: time, kind, identity; the rest only where there is no id."""
    e = event
    return e.time_ms, e.kind, e.id_hi, e.id_lo, e.source, e.content, e.value_micro, e.record_ms


class Twin:
    """Users and clocks of one partition."""

    def __init__(self, settings: FoldSettings) -> None:
        self.settings = settings
        self.clocks: list[int | None] = [None] * len(settings.lateness_ms)
        self.users: dict[str, User] = {}

    def edge(self, source: int) -> int | None:
        """Clock minus allowed lateness: what is older comes late."""
        clock = self.clocks[source]
        return None if clock is None else clock - int(self.settings.lateness_ms[source])

    def frontier(self, idle: Sequence[bool]) -> int | None:
        """Time before which nothing changes any more; None while a source may bring anything."""
        edges = [self.edge(s) for s in range(len(self.clocks)) if not idle[s]]
        known = [edge for edge in edges if edge is not None]
        return min(known) if known and len(known) == len(edges) else None

    def fold(self, batch: EventBatch, idle: Sequence[bool] | None = None) -> list[Outcome]:
        """Fold a batch; -> outcome of each event."""
        for user in batch.users:
            self.users.setdefault(user, User())
        changed = self._erase(batch)
        came: dict[str, list[Event]] = {user: [] for user in batch.users}
        outcomes = []
        for record, row in zip(batch.events, batch.user.tolist(), strict=True):
            name = batch.users[row]
            event = Event.of(record)
            outcome, folded = self._decide(self.users[name], came[name], event)
            outcomes.append(outcome)
            if folded is not None:
                came[name].append(folded)
                changed.add(name)
        frontier = self.frontier(idle or [False] * len(self.clocks))
        for name in changed:
            self._settle(self.users[name], came[name], frontier)
        return outcomes

    def _erase(self, batch: EventBatch) -> set[str]:
        """Forget what erase records of the batch say, wherever they stand in it."""
        changed = set()
        for erase in batch.erases:
            name = batch.users[erase.user]
            user = self.users[name]
            if user.erased_ms is not None and erase.record_ms <= user.erased_ms:
                continue
            user.erased_ms = marker = erase.record_ms
            first = user.settled.first_record_ms
            if first is not None and first <= marker:
                newest = user.settled_record_ms
                user.split += newest is not None and newest > marker
                user.settled, user.settled_record_ms = Side(), None
                user.overtaken = user.capped = 0
                changed.add(name)
            kept = [e for e in user.tail if e.record_ms > marker]
            if kept != user.tail:
                user.tail = kept
                changed.add(name)
            if name in changed:
                user.ids = [seen for seen in user.ids if seen.record_ms > marker]
                user.ring = [seen for seen in user.ring if seen.record_ms > marker]
        return changed

    def _decide(self, user: User, came: list[Event], event: Event) -> tuple[Outcome, Event | None]:
        """Outcome, and the event as it is to be folded."""
        settings = self.settings
        edge = self.edge(event.source)
        late = edge is not None and event.time_ms < edge
        future = event.time_ms > event.record_ms + settings.skew_ms
        if not future:
            clock = self.clocks[event.source]
            self.clocks[event.source] = max(event.time_ms, NO_TIME if clock is None else clock)

        if user.erased_ms is not None and event.record_ms <= user.erased_ms:
            return Outcome.ERASED, None
        if settings.cut_ms is not None and event.time_ms < settings.cut_ms:
            return Outcome.BEFORE_CUT, None
        if late and not event.value_micro:
            return Outcome.LATE, None
        if future and not late:
            return Outcome.FUTURE, None

        folded = event
        if late and edge is not None:
            folded = replace(event, time_ms=edge, flags=event.flags | LATE)
        if event.identity is not None:
            verdict = self._known(user, came, event, edge, late)
            if verdict is not None:
                return verdict, None
            if event.value_micro:
                self._keep_in_ring(user, event)
        return Outcome.APPLIED_LATE if late else Outcome.APPLIED, folded

    def _known(
        self, user: User, came: list[Event], event: Event, edge: int | None, late: bool
    ) -> Outcome | None:
        """DUPLICATE, CONFLICT or LATE; None where the event is new."""
        source, identity = event.source, event.identity
        folded = [_seen(e) for e in [*user.tail, *came] if e.identity is not None]
        within = [
            (seen.time_ms, seen.content)
            for seen in [*user.ids, *folded]
            if seen.source == source
            and seen.identity == identity
            and (edge is None or seen.time_ms >= edge)
        ]
        said = [max(within)[1]] if within else []
        ring = sorted(seen for seen in user.ring if seen.source == source)
        if late and not said:
            said = [seen.content for seen in ring if seen.identity == identity]
        if said:
            return Outcome.DUPLICATE if event.content in said else Outcome.CONFLICT
        if late:
            if len(ring) >= self.settings.ring_cap:
                oldest = ring[0]
                mine = (event.time_ms, event.id_hi, event.id_lo)
                if mine < (oldest.time_ms, oldest.id_hi, oldest.id_lo):
                    return Outcome.LATE
            return None
        ids = [seen.time_ms for seen in user.ids if seen.source == source]
        if len(ids) >= self.settings.ids_cap and event.time_ms < min(ids):
            return Outcome.LATE
        return None

    def _keep_in_ring(self, user: User, event: Event) -> None:
        user.ring.append(_seen(event))
        user.ring = _latest(user.ring, self.settings.ring_cap)

    def _settle(self, user: User, came: list[Event], frontier: int | None) -> None:
        """Put new events into the tail, and fold for good what is to be."""
        own = user.settled.last_ms
        user.overtaken += sum(own is not None and event.time_ms <= own for event in came)
        events = sorted([*user.tail, *came], key=fold_order)
        number = 0
        for event in events:
            behind = own is not None and event.time_ms < own
            if not behind and (frontier is None or event.time_ms >= frontier):
                break
            number += 1
        for source in range(len(self.clocks)):
            places = [i for i, event in enumerate(events) if event.source == source]
            staying = [i for i in places if i >= number]
            if len(staying) > self.settings.tail_cap:
                capped = staying[-self.settings.tail_cap - 1] + 1
                user.capped += capped - number
                number = capped
        settled, user.tail = events[:number], events[number:]
        user.settled = fold_in(user.settled, settled, self.settings)
        came_ms = [e.record_ms for e in settled]
        if user.settled_record_ms is not None:
            came_ms.append(user.settled_record_ms)
        user.settled_record_ms = max(came_ms, default=None)
        left = [_seen(e) for e in settled if e.identity is not None]
        user.ids = _latest(
            [seen for seen in [*user.ids, *left] if self._remembers(seen)], self.settings.ids_cap
        )

    def _remembers(self, seen: Seen) -> bool:
        """Whether a repeat of it could still come in time."""
        edge = self.edge(seen.source)
        return edge is None or seen.time_ms >= edge


def _seen(event: Event) -> Seen:
    e = event
    return Seen(e.source, e.time_ms, e.id_hi, e.id_lo, e.content, e.record_ms)


def _latest(seen: list[Seen], cap: int) -> list[Seen]:
    """The latest `cap` of each source, sorted."""
    out: list[Seen] = []
    for source in sorted({s.source for s in seen}):
        out += sorted(s for s in seen if s.source == source)[-cap:]
    return out
