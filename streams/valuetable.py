"""The value table: what an event is worth, in integer millionths of the deployment's unit.

A rule with an action wins over one without; of equals the first wins. An event without a rule, or
without the rule's field, is worth 0. Another currency is converted by the rate of the event's
date. Field, weight and rate are multiplied exactly and rounded once, half to even.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from datetime import date
from fractions import Fraction

from featurestore import money, times
from featurestore.settings import ValueSettings

ONE = Fraction(1)


class UnknownCurrency(ValueError):
    """A currency has no rate at the event's time."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Value = field x factor."""

    field: str
    factor: Fraction
    exact: bool  # factor is 1


class ValueTable:
    """Rules and rates, compiled."""

    def __init__(self, settings: ValueSettings) -> None:
        self.currency = settings.currency
        self._rules: dict[tuple[str, str | None], Rule] = {}
        for row in settings.rules:
            rule = Rule(row.field, Fraction(row.weight), row.weight == 1)
            self._rules.setdefault((row.type, row.action), rule)
        self._rates: dict[str, tuple[list[int], list[Fraction]]] = {}
        for rate in sorted(settings.rates, key=lambda rate: rate.since):
            since, factors = self._rates.setdefault(rate.currency, ([], []))
            since.append((date.fromisoformat(rate.since) - times.EPOCH.date()).days * times.DAY_MS)
            factors.append(Fraction(rate.rate))

    def rule(self, kind: str, action: str | None = None) -> Rule | None:
        """The rule for a type and action."""
        return self._rules.get((kind, action)) or self._rules.get((kind, None))

    def rate(self, currency: str, time_ms: int) -> Fraction:
        """What one unit of `currency` is worth; UnknownCurrency where no rate holds."""
        if currency == self.currency:
            return ONE
        since, factors = self._rates.get(currency, ((), ()))
        place = bisect_right(since, time_ms)
        if place == 0:
            raise UnknownCurrency(
                f"no rate of {currency} to {self.currency}"
                + (" at that time" if since else "")
                + ": add one to value.rates"
            )
        return factors[place - 1]

    def value(self, rule: Rule | None, field: int | None, rate: Fraction = ONE) -> int:
        """Millionths of `field` (millionths) under a rule; MoneyError where out of range."""
        if rule is None or field is None:
            return 0
        if rule.exact and rate is ONE and abs(field) <= money.LIMIT:
            return field
        return money.scaled(field, rule.factor * rate)
