"""Cells of tables to fields of events: what CSV and Parquet cannot say in JSON's types.

Numbers become decimal text and are never rounded through a float that the file does not hold.
A time without a zone counts as UTC; a date alone is its midnight. Empty cells are absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Context, Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

from featurestore import times
from featurestore.events import Number, loads

_TEXT = (
    *("type", "event_id", "user_id", "item_id", "category", "page", "query", "currency"),
    *("order_id", "action", "target_user_id", "text"),
)
_EXACT = ("amount", "rating", "quantity", "price")
_WHOLE = ("dwell_ms", "duration_ms")
_TIMES = ("event_time", "log_time")
_JSON = ("items", "properties")
FIELDS = (*_TEXT, *_EXACT, *_WHOLE, *_TIMES, *_JSON)

# Products of two record-sized decimals stay exact; what is larger is refused as an amount anyway.
_EXACTLY = Context(prec=200)


class CellError(ValueError):
    """A cell is not what its field needs."""


class Cells:
    """Reads rows by a mapping of fields to column names; unmapped fields keep their names."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._columns = columns
        self._plans: dict[tuple[str, ...], list[tuple[str, str, Callable[[Any], Any]]]] = {}

    def fields_of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of an event. Where there is no amount, `quantity` x `price` is one.

        >>> columns = {"user_id": "Id", "quantity": "Qty", "price": "P"}
        >>> Cells(columns).fields_of({"Id": 17850.0, "Qty": "3", "P": "2.55"})["amount"]
        '7.65'
        """
        fields: dict[str, Any] = {}
        for name, column, read in self._plan(tuple(row)):
            cell = row[column]
            if cell is None or cell == "":
                continue
            try:
                value = read(cell)
            except (ValueError, InvalidOperation) as error:
                raise CellError(f"{name}: {error}") from None
            if value is not None:
                fields[name] = value
        if "amount" not in fields and "quantity" in fields and "price" in fields:
            fields["amount"] = _product(fields["quantity"], fields["price"])
        return fields

    def _plan(self, names: tuple[str, ...]) -> list[tuple[str, str, Callable[[Any], Any]]]:
        """What to read of rows with these columns."""
        plan = self._plans.get(names)
        if plan is None:
            if len(self._plans) > 1000:  # rows of JSON may each have other names
                self._plans.clear()
            wanted = ((name, self._columns.get(name, name), _READERS[name]) for name in FIELDS)
            plan = self._plans[names] = [step for step in wanted if step[1] in names]
        return plan


def time_ms(cell: object) -> int:
    """Milliseconds of a time as tables have it: RFC 3339, ISO without zone, date, integer."""
    match cell:
        case datetime():
            return times.of(cell if cell.tzinfo else cell.replace(tzinfo=UTC))
        case date():
            return times.of(datetime(cell.year, cell.month, cell.day, tzinfo=UTC))
        case bool():
            raise CellError("not a time: a boolean")
        case int():
            return times.checked(cell)
        case Number(token) | str(token):
            text = token.strip()
        case _:
            raise CellError(f"not a time: {cell!r:.40}")
    return _moment(text)


@lru_cache(4096)  # lines of one order share their time
def _moment(text: str) -> int:
    if text.lstrip("-").isdecimal() and text.isascii() and len(text) <= 16:
        # As a number "20110910" is a time in 1970; Python would read a date.
        return times.checked(int(text))
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return times.parse(text)  # "…t…z", and a message that says what is wanted
    return times.of(when if when.tzinfo else when.replace(tzinfo=UTC))


def _text(cell: object) -> str | None:
    match cell:
        case str():
            return cell.strip() or None
        case float() if cell.is_integer():
            return str(int(cell))  # a nullable column of whole numbers, as pandas writes it
        case float() if math.isnan(cell):
            return None
        case Number(token):
            return token
        case bool() | list() | dict():
            raise CellError(f"not a text: {cell!r:.40}")
        case _:
            return str(cell)


def _exact(cell: object) -> str | None:
    match cell:
        case bool() | list() | dict():
            raise CellError(f"not a number: {cell!r:.40}")
        case float() if math.isnan(cell):
            return None
        case float():
            return f"{Decimal(repr(cell)):f}"
        case Decimal():
            return f"{cell:f}"
        case Number(token):
            return token
        case _:
            return str(cell).strip() or None


def _whole(cell: object) -> int | None:
    text = _exact(cell)
    if text is None:
        return None
    number = Decimal(text)
    if number != number.to_integral_value() or abs(number) > 1 << 63:
        raise CellError(f"not a whole number: {text:.40}")
    return int(number)


def _json(cell: object) -> Any:
    if isinstance(cell, str):
        cell = loads(cell.encode())
    return json.loads(json.dumps(cell, default=_plain))


def _plain(value: object) -> Any:
    return value.token if isinstance(value, Number) else str(value)


def _product(quantity: str, price: str) -> str:
    try:
        return f"{_EXACTLY.multiply(Decimal(quantity), Decimal(price)):f}"
    except InvalidOperation:
        raise CellError(f"quantity x price: {quantity:.20} x {price:.20}") from None


_READERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(_TEXT, _text),
    **dict.fromkeys(_EXACT, _exact),
    **dict.fromkeys(_WHOLE, _whole),
    **dict.fromkeys(_TIMES, time_ms),
    **dict.fromkeys(_JSON, _json),
}
