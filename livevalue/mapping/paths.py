"""Reads fields of a vendor's message: paths with fallbacks.

A path is names with dots between, a number takes one of a list: `properties.products.0.sku`.
It starts at the entry (one event of the message), or with a slash in front at the message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.events import Number

_LONGEST_NUMBER = 64  # digits of a number that is taken for an id


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of a message, and the message that it came in."""

    fields: Mapping[str, Any]
    message: Mapping[str, Any]

    def at(self, path: str) -> Any:
        """What lies at a path; None where nothing does.

        >>> message = {"client_id": "c", "events": [{"params": {"items": [{"item_id": "i"}]}}]}
        >>> entry = Entry(message["events"][0], message)
        >>> entry.at("params.items.0.item_id"), entry.at("/client_id"), entry.at("params.value")
        ('i', 'c', None)
        """
        found: Any = self.fields
        if path.startswith("/"):
            found, path = self.message, path[1:]
        return at(found, path)

    def first(self, paths: Iterable[str], empty: Iterable[str] = ("",)) -> Any:
        """The first value that is there and not empty."""
        for path in paths:
            found = self.at(path)
            if found is not None and not (isinstance(found, str) and found.strip() in empty):
                return found
        return None


def at(found: Any, path: str) -> Any:
    """What lies at a path below an object."""
    for name in path.split("."):
        if isinstance(found, Mapping):
            found = found.get(name)
        elif isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found


def text(value: Any) -> str | None:
    """A text or a plain number as text, None where it is neither: vendors' ids come as both.

    >>> text(42), text(" 42 "), text(Number("4e2")), text(True), text(["42"])
    ('42', '42', None, None, None)
    """
    match value:
        case str():
            return value.strip() or None
        case bool():
            return None
        case int():
            return str(value)
        case Number(token) if token.isdigit() and len(token) <= _LONGEST_NUMBER:
            return token
        case _:
            return None


def unfolded(fields: Mapping[str, Any], names: Iterable[str]) -> Mapping[str, Any]:
    """Lists of key and typed value, as BigQuery has them, as plain objects.

    >>> unfolded({"p": [{"key": "value", "value": {"int_value": None, "double_value": 5}}]}, ["p"])
    {'p': {'value': 5}}
    """
    for name in names:
        listed = fields.get(name)
        if isinstance(listed, list):
            plain = {}
            for pair in listed:
                if isinstance(pair, Mapping) and isinstance(pair.get("value"), Mapping):
                    given = (value for value in pair["value"].values() if value is not None)
                    plain[str(pair.get("key"))] = next(given, None)
            fields = {**fields, name: plain}
    return fields
