"""The input contract: Browse | Purchase | Interaction, as pydantic models. The slow readable twin.

`parse(bytes)` reads one event exactly: numbers keep their decimal text, so that an amount never
passes a float; of a name given twice the last counts. `featurestore.records` holds the fast twin.
Field names, limits and meanings are those promised to users; contracts/events.json is generated
from here. Unknown fields are ignored; null stands for an optional field that was left out.

>>> parse(b'{"type": "purchase", "user_id": "ada", "event_time": 0, "amount": 12.50}').amount
Decimal('12.5')
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, NoReturn

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

from featurestore import money, times
from featurestore.columns import Kind

MAX_DEPTH = 100  # of nested JSON; a parser's own limit would depend on the caller's stack
MAX_MILLIS = 2**53 - 1  # largest whole number that every JSON reader keeps


@dataclass(frozen=True, slots=True)
class Number:
    """A JSON number as it was written, where a Python float or a huge int would spoil it."""

    token: str


class NotJson(ValueError):
    """Bytes are not UTF-8 JSON (NaN, infinities and lone surrogates included)."""


def _amount(given: object) -> Decimal:
    match given:
        case str():
            token = given
        case Number(token):
            pass
        case Decimal() | int() if not isinstance(given, bool):
            token = f"{given:f}" if isinstance(given, Decimal) else str(given)
        case _:
            raise ValueError("give a decimal string or a JSON number; a float is not exact")
    return money.decimal(money.micro(token))


def _plain(amount: Decimal) -> str:
    return f"{amount:f}"


def _time(given: object) -> int:
    match given:
        case str():
            return times.parse(given)
        case datetime():
            return times.of(given)
        case int() if not isinstance(given, bool):
            return times.checked(given)
        case _:
            raise ValueError("give RFC 3339 with zone, or integer milliseconds since the epoch")


Exact = Annotated[
    Decimal,
    BeforeValidator(_amount),
    PlainSerializer(_plain, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number"},
                {
                    "type": "string",
                    "pattern": r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$",
                },
            ]
        }
    ),
]
Time = Annotated[
    int,
    BeforeValidator(_time),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "date-time"},
                {"type": "integer", "minimum": times.EARLIEST_MS, "maximum": times.LATEST_MS},
            ]
        }
    ),
]
Millis = Annotated[int, Field(strict=True, ge=0, le=MAX_MILLIS)]
Text = Annotated[str, Field(strict=True)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Event(_Model):
    event_id: Annotated[str, Field(strict=True, min_length=1, max_length=128)] | None = Field(
        None, description="unique per topic and type; without one nothing is deduplicated"
    )
    user_id: Annotated[str, Field(strict=True, min_length=1, max_length=256)] = Field(
        description="whose event it is; also the record's key"
    )
    event_time: Time = Field(
        description="when it happened: RFC 3339 with zone, or integer milliseconds since the epoch"
    )
    item_id: Text | None = Field(None, description="what it was about")
    category: Text | None = Field(None, description="kind of thing that it was about")
    properties: dict[Any, Any] | None = Field(
        None,
        description="free object: carried to archives, not read",
        json_schema_extra={"type": "object"},
    )

    @property
    def kind(self) -> Kind:
        """The event's type as stored."""
        return KINDS[self.type]  # type: ignore[attr-defined]


class Browse(_Event):
    """A user looked at something."""

    type: Literal["browse"] = Field("browse", description="may be left out where the topic says it")
    page: Text | None = None
    query: Text | None = Field(None, description="what was searched for")
    dwell_ms: Millis | None = Field(None, description="how long the user stayed, milliseconds")


class Item(_Model):
    """One line of an order."""

    item_id: Text | None = None
    category: Text | None = None
    quantity: Exact | None = None
    price: Exact | None = Field(None, description="of one, in major units")


class Purchase(_Event):
    """An order, or a refund."""

    type: Literal["purchase"] = Field(
        "purchase", description="may be left out where the topic says it"
    )
    amount: Exact = Field(
        description="major units; > 0 an order, < 0 a refund, 0 a free order; kept as whole "
        "millionths, rounded half to even; at most ten billion"
    )
    currency: Annotated[str, Field(strict=True, pattern=r"^[A-Z]{3}$")] | None = Field(
        None,
        description="ISO 4217; none = the deployment's; another one needs a dated rate",
    )
    order_id: Text | None = None
    items: list[Item] | None = None


class Interaction(_Event):
    """A user did something else: the action says what."""

    type: Literal["interaction"] = Field(
        "interaction", description="may be left out where the topic says it"
    )
    action: Annotated[str, Field(strict=True, min_length=1, max_length=128)] = Field(
        description="cart_add, cart_remove, wishlist, like, comment, share, review, rate, follow, "
        "message, play, complete, level_up, or any name of your own"
    )
    target_user_id: Text | None = None
    rating: Exact | None = None
    duration_ms: Millis | None = Field(None, description="milliseconds")
    text: Text | None = None


Event = Browse | Purchase | Interaction
MODELS: dict[str, type[Browse] | type[Purchase] | type[Interaction]] = {
    "browse": Browse,
    "purchase": Purchase,
    "interaction": Interaction,
}
KINDS = {"browse": Kind.BROWSE, "purchase": Kind.PURCHASE, "interaction": Kind.INTERACTION}
TYPES: tuple[str, ...] = tuple(KINDS)  # indexed by Kind

ACTIONS = (
    "cart_add",
    "cart_remove",
    "wishlist",
    "like",
    "comment",
    "share",
    "review",
    "rate",
    "follow",
    "message",
    "play",
    "complete",
    "level_up",
)
_CODES = {name: code for code, name in enumerate(ACTIONS, 1)}


def action_code(name: str) -> int:
    """16-bit code of an action: known ones 1.., others 256 + hash (may collide). Stored: fixed.

    >>> action_code("cart_add"), action_code("level_up"), action_code("unboxed")
    (1, 13, 60395)
    """
    return _CODES.get(name) or 256 + zlib.crc32(name.encode()) % (65536 - 256)


def category_code(name: str | None) -> int:
    """16-bit hash of a category, never 0; 0 where there is none. Stored: fixed."""
    return 1 + zlib.crc32(name.encode()) % 65535 if name else 0


def addressed(target: str | None, user: str) -> str | None:
    """Whom an interaction addressed: an edge of the social graph; oneself is nobody.

    >>> addressed("bo", "ada"), addressed("ada", "ada"), addressed("", "ada")
    ('bo', None, None)
    """
    return target if target and target != user else None


def target_code(target: str | None) -> int:
    """One of 255 codes of whom an interaction addressed; 0 where nobody. Stored: fixed.

    >>> target_code("bo"), target_code(None)
    (102, 0)
    """
    return 1 + zlib.crc32(target.encode()) % 255 if target else 0


WORDS = 64  # buckets of words, codes 1 to WORDS
_WORD = re.compile(r"\w\w+")


def word_codes(category: str | None, text: str | None) -> tuple[int, int, int, int]:
    """Codes of a category and of the first words of a text, four in all; 0 fills up. Stored: fixed.

    Words are hashed (Weinberger et al. 2009): letters of any script, lower case, two or more.

    >>> word_codes("shoes", "Red running shoes")
    (11, 16, 48, 24)
    >>> word_codes(None, "red, RED")
    (16, 0, 0, 0)
    """
    named = [f"category {category}"] if category else []
    words = dict.fromkeys(_WORD.findall(text[:256].lower())) if text else {}
    codes = [1 + zlib.crc32(word.encode()) % WORDS for word in [*named, *words][:4]]
    one, two, three, four = [*codes, 0, 0, 0, 0][:4]
    return one, two, three, four


def parse(data: bytes, implied: str | None = None) -> Event:
    """Read one JSON event; `implied` is the type where `type` is left out.

    NotJson where it is no JSON, pydantic's ValidationError where it is no event.
    """
    fields = loads(data)
    name = fields.get("type") if isinstance(fields, dict) else None
    if name is None:
        name = implied
    model = MODELS.get(name) if isinstance(name, str) else None
    return (model or Purchase).model_validate(fields)


def loads(data: bytes) -> Any:
    """JSON to Python, exact numbers as Number; NotJson says why not."""
    try:
        document = data.decode()
    except UnicodeDecodeError as error:
        raise NotJson(f"not UTF-8: {error.reason} at byte {error.start}") from None
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH and too_deep(document):
        raise NotJson(f"nested deeper than {MAX_DEPTH} levels")
    try:
        parsed = json.loads(document, parse_float=Number, parse_int=_int, parse_constant=_constant)
    except NotJson:
        raise
    except ValueError as error:
        raise NotJson(str(error)) from None
    if "\\u" in document and _has_lone_surrogate(parsed):
        raise NotJson("a lone surrogate is not Unicode text")
    return parsed


def _int(token: str) -> int | Number:
    # int() of thousands of digits is quadratic, and beyond 4,300 it raises.
    return int(token) if len(token) < 20 else Number(token)


def _constant(name: str) -> NoReturn:
    raise NotJson(f"{name} is not JSON")


_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS = re.compile(r"[{}\[\]]")


def too_deep(document: str) -> bool:
    """Whether a JSON text nests deeper than MAX_DEPTH; never recurses.

    >>> too_deep("[" * 101), too_deep("[" * 100), too_deep('"' + "[" * 101 + '"')
    (True, False, False)
    """
    depth = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub('""', document)):
        depth += 1 if bracket[0] in "{[" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _has_lone_surrogate(parsed: object) -> bool:
    """Whether any string in a parsed document cannot be written as UTF-8."""
    match parsed:
        case str():
            return any("\ud800" <= letter <= "\udfff" for letter in parsed)
        case dict():
            return any(_has_lone_surrogate(k) or _has_lone_surrogate(v) for k, v in parsed.items())
        case list():
            return any(map(_has_lone_surrogate, parsed))
        case _:
            return False
