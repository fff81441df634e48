"""A log as plain columns, for judging: who spent what, when, and when the log knew it.

Independent of the fold on purpose, but for its clocks. Labels and baselines are made from these
columns, features and carries by the fold; where both make the same number, a test holds them equal.

Shapes: E events that count, of U users. Times are integer milliseconds, UTC; value in
major units of the deployment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from featurestore.clock import Clocks, admit
from featurestore.columns import NO_ID, NO_TIME, EventBatch
from featurestore.fold_settings import FoldSettings
from scoring.judging.metrics import Values

DAY = 86_400_000
MICRO = 1e6

Log = Sequence[tuple[int, EventBatch]]  # (partition, batch), each partition in log order
NetBy = Literal["user-day", "order", "event"]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Kinds = npt.NDArray[np.uint8]  # featurestore.columns.Kind


@dataclass(frozen=True, slots=True)
class Window:
    """What users did in [start, end) of event time."""

    value: Values  # (U,) max(0, net value)
    active: Bools  # (U,) a unit of positive net value (a day, or an event)
    net: Values  # (U,) net value, below 0 where more was returned than bought


@dataclass(frozen=True, slots=True)
class History:
    """All events of a log, in log order within each partition."""

    users: dict[str, int]  # name -> row
    user: Ints  # (E,)
    time_ms: Ints  # (E,)
    log_ms: Ints  # (E,)
    value: Values  # (E,)
    kind: Kinds = field(default_factory=lambda: np.empty(0, np.uint8))  # (E,), or unknown: empty
    lateness_ms: int = np.iinfo(np.int64).max  # allowed, the largest of the sources
    left_out: Mapping[str, int] = field(default_factory=dict)  # events, by reason

    @classmethod
    def of(cls, log: Iterable[tuple[int, EventBatch]], settings: FoldSettings) -> History:
        """Gather the columns of what counts, by the rules of the fold and in their order.

        Left out is what is from the future of its record, then what was erased, then repeats of an
        identity among the rest: an event that was left out has used up no identity.
        """
        users: dict[str, int] = {}
        clocks: dict[int, Clocks] = {}
        parts: list[tuple[npt.NDArray[np.void], Ints, Ints]] = []
        erased: dict[int, int] = {}
        future = 0
        for partition, batch in log:
            rows = np.fromiter(
                (users.setdefault(name, len(users)) for name in batch.users),
                np.int64,
                len(batch.users),
            )
            for erase in batch.erases:
                row = int(rows[erase.user])
                erased[row] = max(erased.get(row, NO_TIME), erase.record_ms)
            if batch.size:
                before = clocks.get(partition) or Clocks.start(len(settings.lateness_ms))
                admitted = admit(batch.events, before, settings.lateness_ms, settings.skew_ms)
                clocks[partition], taken = admitted.clocks, ~admitted.future
                future += int(admitted.future.sum())
                parts.append((batch.events[taken], rows[batch.user[taken]], batch.log_ms[taken]))
        lateness_ms = int(settings.lateness_ms.max())
        if not parts:
            none = np.empty(0, np.int64)
            return cls(users, none, none, none, np.empty(0), lateness_ms=lateness_ms)
        events, user, log_ms = (np.concatenate(column) for column in zip(*parts, strict=True))
        left_out = {"future": future, "erased": len(events)}
        if erased:
            until = np.full(len(users), NO_TIME)
            until[list(erased)] = list(erased.values())
            left = events["record_ms"] > until[user]
            events, user, log_ms = events[left], user[left], log_ms[left]
        left_out["erased"] -= len(events)
        first = ~_repeats(events, user)
        left_out["repeated"] = int((~first).sum())
        events, user, log_ms = events[first], user[first], log_ms[first]
        value = events["value_micro"] / MICRO
        time_ms, kind = (np.ascontiguousarray(events[name]) for name in ("time_ms", "kind"))
        return cls(users, user, time_ms, log_ms, value, kind, lateness_ms, left_out)

    @property
    def notes(self) -> list[str]:
        """What was left out, in a line for people.

        >>> none = np.empty(0, np.int64)
        >>> History({}, none, none, none, none, left_out={"future": 0, "repeated": 3}).notes
        ['left out, as a worker leaves them out: 3 repeated']
        """
        said = ", ".join(f"{n:,} {reason}" for reason, n in self.left_out.items() if n)
        return [f"left out, as a worker leaves them out: {said}"] if said else []

    @property
    def start_ms(self) -> int:
        """Time of the first event."""
        return int(self.time_ms.min()) if len(self.time_ms) else 0

    @property
    def end_ms(self) -> int:
        """Log time of the last event."""
        return int(self.log_ms.max()) if len(self.log_ms) else 0

    def known(self, as_of_ms: int) -> Bools:
        """(E,) what had arrived, and happened, before `as_of_ms`."""
        return (self.log_ms < as_of_ms) & (self.time_ms < as_of_ms)

    def upto(self, as_of_ms: int) -> History:
        """The log as it stood at `as_of_ms`; users keep their rows, those to come hold nothing."""
        known = self.known(as_of_ms)
        kind = self.kind[known] if len(self.kind) else self.kind
        user, time_ms, log_ms = (c[known] for c in (self.user, self.time_ms, self.log_ms))
        value = self.value[known]
        return History(self.users, user, time_ms, log_ms, value, kind, self.lateness_ms)

    def delay_ms(self, as_of_ms: int) -> int:
        """How late the latest event before `as_of_ms` came; labels of the past are whole by then.

        0 for a file without log times, which knows no delay. Never more than the allowed lateness:
        nobody waits longer for a label, be a single record late by months.
        """
        known = self.known(as_of_ms)
        longest = int((self.log_ms - self.time_ms)[known].max()) if known.any() else 0
        return min(longest, self.lateness_ms)

    def window(self, start_ms: int, end_ms: int, net_by: NetBy) -> Window:
        """Labels: net value in [start, end), never below 0, and activity by unit.

        `user-day` sums a user's day before it asks whether it was positive, so that an order
        taken back the same day is none; for `order` the log was read with `--order-lines`, where
        one event is one order.

        >>> day = 86_400_000
        >>> log = History({"ada": 0}, np.zeros(2, int), np.array([0, 5]), np.array([0, 5]),
        ...               np.array([9.0, -9.0]))
        >>> log.window(0, day, "user-day").active, log.window(0, day, "event").active
        (array([False]), array([ True]))
        """
        inside = (self.time_ms >= start_ms) & (self.time_ms < end_ms)
        user, value, n = self.user[inside], self.value[inside], len(self.users)
        net = np.bincount(user, value, minlength=n).astype(np.float64)
        if net_by == "user-day":
            day = (self.time_ms[inside] - start_ms // DAY * DAY) // DAY
            span = int(day.max()) + 1 if len(day) else 1
            unit, row = np.unique(user * span + day, return_inverse=True)
            positive = unit[np.bincount(row, value, minlength=len(unit)) > 1e-9] // span
        else:
            positive = user[value > 0]
        active = np.bincount(positive, minlength=n) > 0
        # sums of millionths as floats: what is left of 9 - 9 is no spend
        return Window(np.where(net > 1e-9, net, 0.0), active, net)


def before(
    log: Sequence[tuple[int, EventBatch]], as_of_ms: int
) -> Iterable[tuple[int, EventBatch]]:
    """The log as it stood at `as_of_ms`: what had arrived by then."""
    for partition, batch in log:
        early = batch.log_ms < as_of_ms
        erases = [erase for erase in batch.erases if erase.record_ms < as_of_ms]
        if early.all() and len(erases) == len(batch.erases):
            yield partition, batch
        elif early.any() or erases:
            at = np.flatnonzero(early)
            ids = [batch.event_id[i] for i in at.tolist()] if batch.event_id else []
            yield (
                partition,
                EventBatch(
                    batch.users,
                    batch.user[at],
                    batch.events[at],
                    batch.offset[at],
                    batch.log_ms[at],
                    erases,
                    ids,
                    batch.targets(at),
                ),
            )


def _repeats(events: npt.NDArray[np.void], user: Ints) -> Bools:
    """(E,) events whose identity stood in the log before."""
    order = np.lexsort((np.arange(len(user)), events["id_lo"], events["id_hi"], user))
    a, b = order[1:], order[:-1]
    same = (user[a] == user[b]) & (events["id_hi"][a] == events["id_hi"][b])
    same &= events["id_lo"][a] == events["id_lo"][b]
    same &= (events["flags"][a] & NO_ID) == 0
    out = np.zeros(len(user), bool)
    out[a[same]] = True
    return out
