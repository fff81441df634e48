"""The form of a mapping file, checked when it is read: a misspelt key is refused by name.

A file may extend another by `extends`: its tables are laid over the other's key by key, and its
rules come first, so that a name in both is the extending file's.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from livevalue.output import Refused

_SUFFIX = ".toml"
Paths = tuple[str, ...]
MoneyUnit = Literal["major", "minor", "micro"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Message(_Part):
    """How messages are built."""

    each: str = Field("", description="path of a list: each entry is an event (1 -> N)")
    unfold: Paths = Field((), description="lists of key and typed value to read as objects")
    json_text: Paths = Field((), description="fields that hold JSON as text")
    empty: Paths = Field(("",), description="texts that mean: nothing here")


class Name(_Part):
    """Where the vendor's event name stands."""

    path: str = Field(description="path of the name")
    instead: dict[str, str] = Field({}, description="name found there -> path of the real one")
    any_case: bool = Field(False, description="`order_completed` is `Order Completed` too")


class User(_Part):
    """Whose event it is."""

    id: Paths
    anonymous: Paths = Field((), description="ids of a visitor who has not said who they are")
    anonymous_if: dict[str, bool] = Field(
        {}, description="path -> value with which `id` holds a visitor's id"
    )


class Time(_Part):
    """When it happened; never the sender's uncorrected clock."""

    paths: Paths
    unit: Literal["text", "millis", "micros"] = "text"
    utc: bool = Field(False, description="a text without a zone is in UTC")
    record: bool = Field(False, description="else the Kafka record's timestamp")


class Id(_Part):
    """What makes an event's id: the vendor's, else a UUID 5 of what is named."""

    paths: Paths = ()
    uuid5: Paths = Field((), description="paths; `#index` is the place in the message, `#name`")


class Sum(_Part):
    """One way to say an amount: a field, less others; or the items' price x quantity."""

    path: str = ""
    less: Paths = Field((), description="subtracted where they are there")
    items: bool = False


class Money(_Part):
    """What amounts mean."""

    unit: MoneyUnit = "major"
    currency: Paths = ()
    default_currency: str = Field("", pattern=r"^([A-Z]{3})?$", description="where none is said")
    order: tuple[Sum, ...] = ()
    refund: tuple[Sum, ...] = ()


class Items(_Part):
    """The lines of an order."""

    path: str = ""
    item_id: Paths = ()
    category: Paths = ()
    quantity: Paths = ("quantity",)
    price: Paths = ("price",)


class Rule(_Part):
    """What some of the vendor's names become."""

    names: Paths
    type: Literal["browse", "purchase", "interaction", "ignore"]
    action: str = Field("", description="of an interaction")
    refund: bool = Field(False, description="of a purchase: it is negative")
    fields: dict[str, Paths] = Field({}, description="other paths than the table `fields` has")
    id: Id | None = Field(None, description="what makes the id of these, if not the usual")
    money_unit: MoneyUnit | None = Field(None, description="of a purchase, if another than usual")
    park: str = Field("", description="do not map, and say this")


class Mapping(_Part):
    """One mapping file."""

    name: str
    about: str = ""
    sources: Paths = Field((), description="where the vendor describes its format")
    message: Message = Message()
    event_name: Name
    user: User
    time: Time
    id: Id = Id()
    fields: dict[str, Paths] = Field({}, description="our field -> paths")
    items: Items = Items()
    money: Money = Money()
    rules: tuple[Rule, ...] = ()

    def rule_of(self, name: str) -> Rule | None:
        """The first rule that has a name; None where the mapping does not know it."""
        asked = self.plain(name)
        for rule in self.rules:
            if asked in (self.plain(known) for known in rule.names):
                return rule
        return None

    def plain(self, name: str) -> str:
        """A name as names are compared."""
        if not self.event_name.any_case:
            return name
        return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def names() -> list[str]:
    """Mappings that come with the package.

    >>> names()
    ['ga4', 'ga4-bigquery', 'posthog', 'rudderstack', 'segment']
    """
    return sorted(
        file.name.removesuffix(_SUFFIX)
        for file in resources.files("livevalue.mappings").iterdir()
        if file.name.endswith(_SUFFIX)
    )


def load(name: str) -> Mapping:
    """A mapping by its name, or by the path of a TOML file."""
    merged: dict[str, Any] = {}
    for part in _chain(name):
        merged = _over(part, merged)
    merged.pop("extends", None)
    try:
        return Mapping.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        raise Refused(f"mapping {name}: {place}: {first['msg']} (see docs/mapping.md)") from None


def _chain(name: str, above: int = 0) -> Iterator[dict[str, Any]]:
    """The file's base first, then the file."""
    if above > 8:
        raise Refused(f"mapping {name}: `extends` goes round in a circle")
    found = _read(name)
    base = found.get("extends")
    if isinstance(base, str):
        yield from _chain(base, above + 1)
    yield found


def _read(name: str) -> dict[str, Any]:
    if name.endswith(_SUFFIX):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(f"cannot read mapping {name} ({error}): check --as") from None
    elif name in names():
        text = resources.files("livevalue.mappings").joinpath(name + _SUFFIX).read_text("utf-8")
    else:
        raise Refused(f"no mapping {name!r}: --as takes {', '.join(names())}, or a FILE.toml")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"mapping {name} is no TOML: {error}") from None


def _over(upper: dict[str, Any], lower: dict[str, Any]) -> dict[str, Any]:
    merged = dict(lower)
    for key, value in upper.items():
        below = lower.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = _over(value, below)
        elif key == "rules" and isinstance(below, list):
            merged[key] = [*value, *below]
        else:
            merged[key] = value
    return merged
