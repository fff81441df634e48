"""Money of vendors, exact: Decimal from the message's own digits, never through a float.

Numbers and decimal strings are taken; "1.299,00" or "$5" is not guessed at. Minor units become
major ones by the exponent of ISO 4217 (list one, of 2024); in minor units a fraction cannot be,
so there it is refused: it shows that the unit is another.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from decimal import Context, Decimal
from typing import Any

from featurestore import money
from featurestore.events import Number

_LONGEST = 64  # characters of a number
_EXACT = Context(prec=160)
_KEPT = 100_000  # orders remembered, some 30 MB

_EXPONENTS = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    2: "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BRL BSD BTN BWP BYN BZD "
    "CAD CDF CHF CNY COP CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD "
    "GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD "
    "MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP "
    "PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS "
    "TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VES WST XCD YER ZAR ZMW ZWG",
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
EXPONENT = {code: digits for digits, codes in _EXPONENTS.items() for code in codes.split()}


class NotMoney(ValueError):
    """No amount can be made of it; the message says why."""


def number(given: Any) -> Decimal | None:
    """A number or decimal string, exact; None where nothing was given, NotMoney where it is odd.

    >>> number("19.90"), number(Number("25.00")), number(3), number("")
    (Decimal('19.90'), Decimal('25.00'), Decimal('3'), None)
    """
    match given:
        case None:
            return None
        case str():
            token = given.strip()
        case Number(token):
            pass
        case int() if not isinstance(given, bool):
            token = str(given)
        case _:
            raise NotMoney(f"{type(given).__name__} is no number")
    if not token:
        return None
    if len(token) > _LONGEST:
        raise NotMoney(f"not a decimal number: {token[:40]!r}")
    try:
        money.micro(token)  # the contract's own grammar and range; also bounds the exponent
    except money.MoneyError as error:
        raise NotMoney(str(error)) from None
    return Decimal(token)


def times(one: Decimal, other: Decimal) -> Decimal:
    """A product, exact up to 160 digits."""
    return _EXACT.multiply(one, other)


def major(amount: Decimal, unit: str, currency: str) -> Decimal:
    """An amount of a unit in major units.

    >>> major(Decimal(1000), "minor", "USD"), major(Decimal(1000), "minor", "JPY")
    (Decimal('10.00'), Decimal('1000'))
    """
    if unit == "major":
        return amount
    if unit == "micro":
        return amount.scaleb(-6, _EXACT)
    digits = EXPONENT.get(currency)
    if digits is None:
        raise NotMoney(f"{currency or 'no currency'} has no minor unit in ISO 4217")
    if amount % 1:
        raise NotMoney(f"{amount} of the smallest unit: no such part of a {currency} exists")
    return amount.scaleb(-digits, _EXACT)


def micro(amount: Decimal) -> int:
    """Millionths, rounded once; NotMoney beyond the contract's range."""
    try:
        return money.micro(str(amount).upper())
    except money.MoneyError as error:
        raise NotMoney(str(error)) from None


def plain(amount: int) -> str:
    """Millionths as a decimal string.

    >>> plain(-27500000)
    '-27.5'
    """
    return f"{money.decimal(amount):f}"


@dataclass(slots=True)
class _Order:
    event_id: str
    amount: int  # millionths
    currency: str
    refunds: dict[str, int] = field(default_factory=dict)  # by their event ids


class Orders:
    """The latest orders by user and order id: for refunds that name no amount, and for repeats.

    Bounded, in memory, of this run: after a restart a refund without an amount is parked rather
    than guessed. What is said again after a restart gives the same ids, and so changes nothing.
    """

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._orders: OrderedDict[tuple[str, str], _Order] = OrderedDict()

    def repeats(self, user: str, order: str, event_id: str) -> bool:
        """Is it an order that came before under another event id?"""
        known = self._orders.get((user, order))
        return known is not None and known.event_id != event_id

    def add(self, user: str, order: str, event_id: str, amount: int, currency: str) -> None:
        """Remember an order; said again, it stays as it is."""
        if (user, order) not in self._orders:
            self._orders[user, order] = _Order(event_id, amount, currency)
            if len(self._orders) > self._kept:
                self._orders.popitem(last=False)

    def refunded(self, user: str, order: str, event_id: str, amount: int) -> None:
        """Remember that a part of an order was given back."""
        if known := self._orders.get((user, order)):
            known.refunds[event_id] = amount

    def rest(self, user: str, order: str, event_id: str) -> tuple[int, str] | None:
        """What other refunds left of an order, and its currency; None where nothing is left."""
        known = self._orders.get((user, order))
        if known is None:
            return None
        others = sum(amount for key, amount in known.refunds.items() if key != event_id)
        left = known.amount - others
        if left <= 0:
            return None
        known.refunds[event_id] = left
        return left, known.currency
