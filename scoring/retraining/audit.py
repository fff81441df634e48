"""Audit: what was served against what came true.

A snapshot holds the values that readers were served at one moment. Once its label is mature
(snapshot + horizon + allowed lateness <= the log's clock) each user's value is held against his
net value in [snapshot, snapshot + horizon): ranking, level and coverage by generation, horizon and
evidence. Labels come from the log as columns (scoring.judging.history), independent of the fold.
A log that retention has shortened is whole only from where the last of its shortened parts begins.

A document may be as new as the snapshot's moment, or newer by the time that its walk took; what
such a document had already seen is no part of its label.

Alarms look at rows that can tell: with at least `least` users who were active or were expected to
be. At 100 of them the standard error of an 80 % coverage is .04 and that of a level about .15.

Shapes: U users of one snapshot; times are integer milliseconds, values major units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from featurestore import times
from featurestore.columns import NO_TIME, EventBatch
from featurestore.fold_settings import FoldSettings
from scoring.judging import metrics
from scoring.judging.history import DAY, Bools, History, Ints
from scoring.judging.metrics import Values

ALL = "all"
EVIDENCE = (ALL, "cold", "thin", "enough")
Row = dict[str, Any]


class Thresholds(BaseModel):
    """Beyond which a row is an alarm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bias: float = Field(0.7, gt=0, lt=1, description="least level; the most is one over it")
    cover: float = Field(0.08, gt=0, lt=0.2, description="distance of the coverage from .8")
    rank: float = Field(0.05, ge=0, description="nGini below that of ranking by past spend")
    least: int = Field(100, ge=1, description="users active or expected to be, else no alarm")


@dataclass(frozen=True, slots=True)
class Predicted:
    """Of one horizon, (U,) each; p10 and p90 of "if active", as published."""

    expected: Values
    p_active: Values
    p10: Values
    p90: Values


@dataclass(frozen=True, slots=True)
class Served:
    """One snapshot."""

    snapshot_ms: int
    users: list[str]
    as_of_ms: Ints  # of the documents
    spent: Values  # net, until then
    generation: npt.NDArray[np.object_]
    evidence: npt.NDArray[np.object_]
    horizons: Mapping[int, Predicted]  # by days


@dataclass(frozen=True, slots=True)
class Truth:
    """A log, and who was forgotten in it."""

    history: History
    erased_ms: Mapping[str, int]  # user -> time of the last erase record
    shortened_ms: int | None = None  # from when on every part of a shortened log is there

    @classmethod
    def of(
        cls,
        log: Iterable[tuple[int, EventBatch]],
        settings: FoldSettings,
        *,
        files: bool = False,
    ) -> Truth:
        """Read a log once.

        files: it begins with files, which are whole; their offsets count rows over all partitions.
        Of a log of records each source partition has offsets of its own, and retention deletes by
        source partition: what begins beyond 0 lacks its beginning, or began with records that were
        no events, which cannot be told apart. Sources without any value are in no label.
        """
        erased: dict[str, int] = {}
        first: dict[tuple[int, int], tuple[int, int]] = {}  # source partition: offset, log time
        valued: set[int] = set()

        def noted() -> Iterator[tuple[int, EventBatch]]:
            for partition, batch in log:
                for erase in batch.erases:
                    user = batch.users[erase.user]
                    erased[user] = max(erased.get(user, NO_TIME), erase.record_ms)
                source = batch.events["source"]
                for one, at in zip(*np.unique(source, return_index=True), strict=True):
                    begin = (int(batch.offset[at]), int(batch.log_ms[at]))
                    first.setdefault((partition, int(one)), begin)
                valued.update(np.unique(source[batch.events["value_micro"] != 0]).tolist())
                yield partition, batch

        history = History.of(noted(), settings)
        shortened = [ms for (_, one), (offset, ms) in first.items() if offset and one in valued]
        return cls(history, erased, None if files else max(shortened, default=None))

    @property
    def begins_ms(self) -> int | None:
        """Log time from which on the log is whole; labels before it would miss something."""
        if not len(self.history.log_ms):
            return None
        return int(self.history.log_ms.min()) if self.shortened_ms is None else self.shortened_ms

    def mature_ms(self, snapshot_ms: int, days: int, lateness_ms: int) -> int | None:
        """From which log time on a label is known; None where it is already.

        >>> log = History({}, np.zeros(1, int), np.zeros(1, int), np.array([8 * DAY]), np.zeros(1))
        >>> Truth(log, {}).mature_ms(0, 7, DAY), Truth(log, {}).mature_ms(1, 7, DAY) // DAY
        (None, 8)
        """
        until = snapshot_ms + days * DAY + lateness_ms
        return until if until > self.history.end_ms else None


def kept(served: Served, truth: Truth) -> tuple[Served, int]:
    """The snapshot without users who were erased after it, and how many those are."""
    gone = np.array(
        [truth.erased_ms.get(user, NO_TIME) > served.snapshot_ms for user in served.users], bool
    )
    if not gone.any():
        return served, 0
    at = np.flatnonzero(~gone)
    return (
        replace(
            served,
            users=[served.users[i] for i in at.tolist()],
            horizons={
                days: Predicted(p.expected[at], p.p_active[at], p.p10[at], p.p90[at])
                for days, p in served.horizons.items()
            },
            **{
                name: getattr(served, name)[at]
                for name in ("as_of_ms", "spent", "generation", "evidence")
            },
        ),
        int(gone.sum()),
    )


def labels(served: Served, truth: Truth, days: int) -> tuple[Values, Bools]:
    """((U,) net value never below 0, (U,) a positive value event) in the horizon.

    Users whom the log does not name did nothing in it.
    """
    history = truth.history
    row = np.array([history.users.get(user, -1) for user in served.users], np.int64)
    seen_ms = np.full(len(history.users), NO_TIME)
    newer = (served.as_of_ms >= served.snapshot_ms) & (row >= 0)
    if newer.any():
        seen_ms[row[newer]] = served.as_of_ms[newer]
        after = history.time_ms > seen_ms[history.user]
        columns = ("user", "time_ms", "log_ms", "value")
        history = replace(history, **{name: getattr(history, name)[after] for name in columns})
    end_ms = served.snapshot_ms + days * DAY
    window = history.window(served.snapshot_ms, end_ms, "event")
    if not len(window.value):
        return np.zeros(len(row)), np.zeros(len(row), bool)
    return np.where(row >= 0, window.value[row], 0.0), (row >= 0) & window.active[row]


def judge(
    served: Served, value: Values, active: Bools, days: int, thresholds: Thresholds
) -> list[Row]:
    """Rows of one snapshot and horizon: each generation, by evidence and in all."""
    rows = []
    for generation in sorted(set(served.generation)):
        for evidence in EVIDENCE:
            at = served.generation == generation
            if evidence != ALL:
                at &= served.evidence == evidence
            if at.any():
                rows.append(
                    {
                        "snapshot": times.text(served.snapshot_ms),
                        "generation": generation,
                        "horizon_days": days,
                        "evidence": evidence,
                        **_measured(served, at, value, active, days, thresholds),
                    }
                )
    return rows


def _measured(
    served: Served, at: Bools, value: Values, active: Bools, days: int, thresholds: Thresholds
) -> Row:
    said = served.horizons[days]
    value, active = value[at], active[at]
    expected, p_active = said.expected[at], said.p_active[at]
    found: dict[str, float] = {
        "ngini": metrics.ngini(value, expected),
        "ngini_past": metrics.ngini(value, served.spent[at]),
        "spearman": metrics.spearman(value, expected),
        "bias": metrics.bias(value, expected),
        "mae": metrics.mae(value, expected),
        "auc": metrics.auc(active, p_active),
        "brier": metrics.brier(active, p_active),
        "cover80": metrics.cover80(value, said.p10[at], said.p90[at]),
    }
    row: Row = {
        "users": int(at.sum()),
        "active": int(active.sum()),
        "active_expected": round(float(p_active.sum()), 1),
        **{name: round(x, 5) if math.isfinite(x) else None for name, x in found.items()},
        "expected": round(float(expected.sum()), 2),
        "actual": round(float(value.sum()), 2),
    }
    return {**row, "alarms": alarms(row, thresholds)}


def alarms(row: Row, thresholds: Thresholds) -> list[str]:
    """What of a row is beyond the thresholds: `bias`, `cover80`, `ngini`.

    Where many were expected and nobody spent, there is no ratio, but it is the level that is off.

    >>> row = {"active": 0, "active_expected": 150.0, "bias": None, "cover80": None, "ngini": None}
    >>> alarms(row, Thresholds())
    ['bias']
    """
    if max(row["active"], row["active_expected"]) < thresholds.least:
        return []
    found = []
    if row["bias"] is None or not thresholds.bias <= row["bias"] <= 1 / thresholds.bias:
        found.append("bias")
    if row["active"] < thresholds.least:
        return found
    if row["cover80"] is not None and abs(row["cover80"] - 0.8) > thresholds.cover:
        found.append("cover80")
    ranks, past = row["ngini"], row["ngini_past"]
    if ranks is not None and past is not None and ranks < past - thresholds.rank:
        found.append("ngini")
    return found
