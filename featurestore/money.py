"""Money as integer millionths of the major unit, read from decimal text and never from a float.

A token is the text of a JSON number or of a decimal string: `-?digits[.digits][e±digits]`, as in
RFC 8259 section 6. More than six decimals are rounded half to even, once. Amounts beyond
`LIMIT` are refused: int64 holds 922 of the largest, and sums of a user's life stay far below.

>>> micro("12.5"), micro("-0.0000015"), micro("1e3")
(12500000, -2, 1000000000)
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

MICRO = 1_000_000
LIMIT = 10**16  # millionths: ten billion major units

_TOKEN = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?)([0-9]+))?\Z", re.ASCII)


class MoneyError(ValueError):
    """The text is no decimal number, or too large. A ValueError, so that pydantic reports it."""


def micro(token: str) -> int:
    """Millionths of a decimal token; MoneyError if it is none or beyond ±LIMIT.

    Costs O(length), also for "1e999999999" and for 10,000 digits.
    """
    match = _TOKEN.match(token)
    if match is None:
        raise MoneyError(f"not a decimal number: {token[:40]!r}")
    sign, whole, fraction, below, exponent = match.groups()
    fraction = fraction or ""
    digits = (whole + fraction).lstrip("0")
    if not digits:
        return 0
    # An exponent of many digits cannot be outweighed by a record's worth of mantissa digits.
    power = int((exponent or "").lstrip("0")[:12] or "0") * (-1 if below == "-" else 1)
    shift = power - len(fraction) + 6  # value in millionths = digits * 10**shift
    if len(digits) + shift > 17:
        raise MoneyError(f"amount out of range: {token[:40]}")
    if len(digits) + shift < -1:
        return 0
    if shift >= 0:
        amount = int(digits + "0" * shift)
    else:
        amount = _half_even(digits, -shift)
    if amount > LIMIT:
        raise MoneyError(f"amount out of range: {token[:40]}")
    return -amount if sign else amount


def _half_even(digits: str, drop: int) -> int:
    """`digits` without its last `drop` digits, rounded half to even.

    >>> [_half_even(d, 1) for d in ("24", "25", "26", "35")]
    [2, 2, 3, 4]
    """
    digits = digits.rjust(drop + 1, "0")
    kept, rest = int(digits[:-drop]), digits[-drop:]
    half = "5" + "0" * (drop - 1)
    if rest > half or (rest == half and kept % 2):
        kept += 1
    return kept


def scaled(amount: int, factor: Fraction) -> int:
    """`amount` x `factor`, rounded half to even once; MoneyError beyond ±LIMIT.

    >>> scaled(25, Fraction(1, 10)), scaled(35, Fraction(1, 10))
    (2, 4)
    """
    result = round(amount * factor)
    if abs(result) > LIMIT:
        raise MoneyError(f"value out of range: {result} millionths")
    return result


def decimal(amount: int) -> Decimal:
    """Major units of an amount in millionths, exact.

    >>> decimal(12500000)
    Decimal('12.5')
    """
    return Decimal(amount).scaleb(-6).normalize()
