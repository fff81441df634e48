"""Money: exact against Python's Decimal, whatever the token."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.money import LIMIT, MoneyError, decimal, micro, scaled

EXACT = Context(prec=500, rounding=ROUND_HALF_EVEN)


@given(
    st.from_regex(r"-?(0|[1-9][0-9]{0,11})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)
)
def test_millionths_equal_decimal_rounded_half_even(token: str) -> None:
    exact = int(EXACT.quantize(Decimal(token), Decimal("0.000001")).scaleb(6, EXACT))
    if abs(exact) > LIMIT:
        with pytest.raises(MoneyError):
            micro(token)
    else:
        assert micro(token) == exact


@pytest.mark.parametrize(
    ("token", "amount"),
    [
        ("0.1", 100_000),
        ("0.0000005", 0),
        ("0.0000015", 2),
        ("0.00000050000000000000000000001", 1),
        ("-0", 0),
        ("1e-999999999999999999999", 0),
        ("0e999999999999999999999", 0),
        ("10000000000", LIMIT),
        ("1e0000000000000000000000001", 10_000_000),
        ("10e-0000000000000000000000001", 1_000_000),
    ],
)
def test_edges_of_the_range_are_exact(token: str, amount: int) -> None:
    assert micro(token) == amount


@pytest.mark.parametrize(
    "token",
    [
        "",
        "-",
        "01",
        "1.",
        ".5",
        "+1",
        "1e",
        "NaN",
        "Infinity",
        " 1",
        "1\n",
        "0x1",
        "1_0",
        "١",
        "1e999",
        "1e999999999999999999999",
        "9" * 10000,
        "10000000000.000001",
        "-10000000001",
    ],
)
def test_what_is_no_amount_is_refused(token: str) -> None:
    with pytest.raises(MoneyError):
        micro(token)


@given(st.integers(-LIMIT, LIMIT))
def test_a_decimal_reads_back_as_the_same_amount(amount: int) -> None:
    assert micro(f"{decimal(amount):f}") == amount


def test_scaling_rounds_once_and_refuses_what_is_too_large() -> None:
    assert scaled(10_000_000, Fraction("0.3")) == 3_000_000
    with pytest.raises(MoneyError):
        scaled(LIMIT, Fraction(2))
