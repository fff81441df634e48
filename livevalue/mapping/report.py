"""What became of a stream, by the vendor's names, and the worst records with what to change."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from featurestore import times
from livevalue.mapping import amounts
from livevalue.mapping.engine import ADVICE, Outcome

STATUSES = ("mapped", "ignored", "anonymous", "parked")
_NAMES = 2_000  # names that are told apart; a sender that makes up names does not fill memory
_WORST = 10
_OTHERS = "(other names)"


@dataclass(slots=True)
class _Group:
    """Records parked for one reason under one name."""

    money: bool
    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)  # place, detail


@dataclass(slots=True)
class _Sums:
    orders: int = 0
    refunds: int = 0
    total: int = 0  # millionths, of orders
    refunded: int = 0
    smallest: int = 0
    largest: int = 0


class Report:
    """Counts outcomes as they come."""

    def __init__(self) -> None:
        self.messages = 0
        self.counts: Counter[str] = Counter()
        self._names: dict[str, Counter[str]] = {}
        self._becomes: dict[str, str] = {}
        self._unknown: set[str] = set()
        self._reasons: Counter[str] = Counter()
        self._groups: dict[tuple[str, str], _Group] = {}
        self._money: defaultdict[str, _Sums] = defaultdict(_Sums)
        self._first: int | None = None
        self._last: int | None = None

    def add(self, place: str, outcomes: Sequence[Outcome]) -> None:
        """Count one message's outcomes; `place` is where a person finds it."""
        self.messages += 1
        for outcome in outcomes:
            self._one(place, outcome)

    def _one(self, place: str, outcome: Outcome) -> None:
        name = outcome.name or "(no name)"
        if name not in self._names and len(self._names) >= _NAMES:
            name = _OTHERS
        self.counts[outcome.status] += 1
        self._names.setdefault(name, Counter())[outcome.status] += 1
        if not outcome.known:
            self._unknown.add(name)
        if outcome.reason:
            self._reasons[outcome.reason] += 1
        if outcome.event is not None:
            self._mapped(name, outcome, outcome.event)
        elif outcome.status == "parked":
            group = self._groups.setdefault((name, outcome.reason), _Group(outcome.money))
            group.count += 1
            if len(group.examples) < _WORST:
                group.examples.append((place, outcome.detail))

    def _mapped(self, name: str, outcome: Outcome, event: dict[str, Any]) -> None:
        kind = event["type"]
        self._becomes[name] = f"{kind} {event['action']}" if "action" in event else kind
        ms = outcome.time_ms
        self._first = ms if self._first is None else min(self._first, ms)
        self._last = ms if self._last is None else max(self._last, ms)
        if kind != "purchase":
            return
        sums = self._money[event["currency"]]
        if outcome.micro < 0:
            sums.refunds += 1
            sums.refunded -= outcome.micro
            return
        sums.smallest = min(sums.smallest, outcome.micro) if sums.orders else outcome.micro
        sums.largest = max(sums.largest, outcome.micro)
        sums.orders += 1
        sums.total += outcome.micro

    def names(self) -> list[dict[str, Any]]:
        """A row for each of the vendor's names, most frequent first."""
        rows = sorted(self._names.items(), key=lambda row: (-row[1].total(), row[0]))
        return [
            {
                "name": name,
                **{status: counts[status] for status in STATUSES},
                "becomes": self._becomes.get(name, ""),
                "in_mapping": name not in self._unknown,
            }
            for name, counts in rows
        ]

    def worst(self) -> list[dict[str, Any]]:
        """Ten parked records: lost money first, then the most frequent reasons."""
        groups = sorted(
            self._groups.items(), key=lambda item: (not item[1].money, -item[1].count, item[0])
        )
        found = [
            {
                "at": group.examples[turn][0],
                "name": name,
                "reason": reason,
                "detail": group.examples[turn][1],
                "like_it": group.count,
                "change": ADVICE[reason],
            }
            for turn in range(_WORST)
            for (name, reason), group in groups
            if turn < len(group.examples)
        ]
        return found[:_WORST]

    def money(self) -> list[dict[str, Any]]:
        """Orders and refunds by currency, in major units: a wrong unit shows here at once."""
        return [
            {
                "currency": code,
                "orders": sums.orders,
                "smallest": amounts.plain(sums.smallest),
                "mean": amounts.plain(_mean(sums.total, sums.orders)),
                "largest": amounts.plain(sums.largest),
                "refunds": sums.refunds,
                "refunded": amounts.plain(sums.refunded),
            }
            for code, sums in sorted(self._money.items())
        ]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "messages": self.messages,
            **{status: self.counts[status] for status in STATUSES},
            "reasons": dict(self._reasons.most_common()),
            "names": self.names(),
            "money": self.money(),
            "worst": self.worst(),
            "first_event_at": None if self._first is None else times.text(self._first),
            "last_event_at": None if self._last is None else times.text(self._last),
        }


def _mean(total: int, count: int) -> int:
    """In millionths, to hundredths of the unit."""
    return (total // count + 5_000) // 10_000 * 10_000 if count else 0
