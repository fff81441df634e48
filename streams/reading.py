"""One record to one event, through the pydantic contract: the codec's readable twin.

Slow (some 20 µs a record) and in charge: it alone gives reasons for rejections. Never raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b
from typing import Any, Protocol

import msgspec
from pydantic import ValidationError

from featurestore import money
from featurestore.columns import NO_ID, STEPS
from featurestore.events import (
    MODELS,
    TYPES,
    Browse,
    Event,
    Interaction,
    NotJson,
    Purchase,
    action_code,
    addressed,
    category_code,
    loads,
    word_codes,
)
from featurestore.records import BrowseRecord, InteractionRecord, PurchaseRecord, fields_of
from streams import cloudevents
from streams.columns import Words
from streams.deadletter import Reason, Rejected, origin
from streams.settings import Settings
from streams.valuetable import ONE, UnknownCurrency, ValueTable


class RawRecord(Protocol):
    """A record as consumers give it (aiokafka's ConsumerRecord is one)."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


class Refused(Exception):
    """A record is a dead letter; caught inside this module."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason = reason
        # Printable as UTF-8 whatever the record held.
        self.detail = detail.encode(errors="replace").decode()[:200]


@dataclass(slots=True)
class Row:
    """One event as the twin reads it."""

    user_id: str
    time_ms: int
    value: int
    action: int
    category: int
    kind: int
    flags: int
    identity: bytes
    event_id: str | None
    target: str | None  # whom it addressed
    words: Words  # codes of what it was about


class Reader:
    """Reads single records of one deployment's sources."""

    def __init__(self, settings: Settings) -> None:
        kafka = settings.kafka
        self.table = ValueTable(settings.value)
        self.implied: tuple[str | None, ...] = (None,) if kafka.mixed else TYPES
        self.prefixes = [
            [f"{topic}\0{name}\0".encode() for name in TYPES] for topic in kafka.sources
        ]
        self._limit = kafka.max_record_bytes
        self._derive_ids = settings.features.derive_ids
        self._carry_actions = frozenset(settings.features.carry_actions)

    def record(self, source: int, partition: int, record: RawRecord) -> Row | Rejected | None:
        """One record: an event, None for an erase, or why it is neither."""
        try:
            return self._read(source, partition, record)
        except Refused as no:
            return Rejected(source, record.offset, no.reason, no.detail)
        except Exception as error:  # noqa: BLE001 - see below
            # A poison pill must not stop a partition; the reason says that this is our bug.
            detail = f"{type(error).__name__}: {error}".encode(errors="replace").decode()[:200]
            return Rejected(source, record.offset, Reason.UNREADABLE, detail)

    def _read(self, source: int, partition: int, record: RawRecord) -> Row | None:
        key, value = record.key, record.value
        if value is None:
            _check_erase_key(key)
            return None
        if len(value) > self._limit:
            raise Refused(Reason.TOO_LARGE, f"{len(value)} bytes, at most {self._limit}")
        try:
            fields = loads(value)
        except NotJson as no:
            raise Refused(Reason.NOT_JSON, str(no)) from None
        scope = ""
        if mode := cloudevents.mode(record.headers):
            try:
                fields, scope = cloudevents.unwrap(mode, fields, record.headers)
            except cloudevents.NotCloudEvent as no:
                reason = Reason.MISSING_FIELD if no.missing else Reason.INVALID_FIELD
                raise Refused(reason, str(no)) from None
        if not isinstance(fields, dict):
            raise Refused(Reason.NOT_OBJECT, f"a JSON {_json_name(fields)}, not an object")
        event = self._model(source, fields)
        if key != event.user_id.encode():
            raise Refused(Reason.WRONG_KEY, "the record's key must be its user_id")
        name = TYPES[event.kind]
        action = event.action if isinstance(event, Interaction) else None
        worth = self._value(event, name, action)
        prefix = self.prefixes[source][event.kind]
        flags = STEPS if worth or action in self._carry_actions else 0
        if event.event_id is not None:
            named = prefix + scope.encode() + event.event_id.encode()
        elif not self._derive_ids and (first := origin(record.headers)):
            named = prefix + b"\0" + first + b"\0" + value
        else:
            named = self.unnamed(prefix, partition, record.offset, value)
            flags |= 0 if self._derive_ids else NO_ID
        return Row(
            user_id=event.user_id,
            time_ms=event.event_time,
            value=worth,
            action=action_code(action) if action is not None else 0,
            category=category_code(event.category),
            kind=int(event.kind),
            flags=flags,
            identity=blake2b(named, digest_size=16).digest(),
            event_id=event.event_id,
            target=_addressed(event),
            words=word_codes(event.category, _text(event)),
        )

    def _model(self, source: int, fields: dict[str, Any]) -> Event:
        """Fields to the model of their type."""
        implied, said = self.implied[source], fields.get("type")
        name = implied if said is None else said
        if name is None:
            raise Refused(Reason.MISSING_FIELD, "type: this topic holds several types")
        model = MODELS.get(name) if isinstance(name, str) else None
        if model is None:
            raise Refused(Reason.INVALID_FIELD, "type: must be browse, purchase or interaction")
        if implied is not None and name != implied:
            raise Refused(Reason.INVALID_FIELD, f"type: {name} in a topic of {implied} events")
        try:
            return model.model_validate({**fields, "type": name})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            missing = first["type"] == "missing"
            place = ".".join(map(str, first["loc"]))
            raise Refused(
                Reason.MISSING_FIELD if missing else Reason.INVALID_FIELD,
                f"{place}: {first['msg']}",
            ) from None

    def _value(self, event: Event, kind: str, action: str | None) -> int:
        """What an event is worth; Refused where that cannot be said."""
        rule = self.table.rule(kind, action)
        if rule is None:
            return 0
        counted: int | None = None
        rate = ONE
        try:
            match rule.field, event:
                case "one", _:
                    counted = money.MICRO
                case "amount", Purchase():
                    rate = self._rate(event)
                    counted = money.micro(f"{event.amount:f}")
                case "dwell_ms", Browse() if event.dwell_ms is not None:
                    counted = event.dwell_ms * money.MICRO
                case "duration_ms", Interaction() if event.duration_ms is not None:
                    counted = event.duration_ms * money.MICRO
                case "rating", Interaction() if event.rating is not None:
                    counted = money.micro(f"{event.rating:f}")
                case _:
                    pass
            return self.table.value(rule, counted, rate)
        except money.MoneyError as error:
            raise Refused(Reason.INVALID_FIELD, f"{rule.field}: {error}") from None

    def _rate(self, event: Purchase) -> Fraction:
        if event.currency is None:
            return ONE
        try:
            return self.table.rate(event.currency, event.event_time)
        except UnknownCurrency as no:
            raise Refused(Reason.UNKNOWN_CURRENCY, str(no)) from None

    def unnamed(self, prefix: bytes, partition: int, offset: int, value: bytes) -> bytes:
        """What identifies an event without an id: its position, or its bytes by setting.

        A NUL begins it, which no event id of a sane producer does.
        """
        if self._derive_ids:
            return prefix + b"\0" + value
        return prefix + b"\0%d\0%d" % (partition, offset)

    def unknown_fields(self, source: int, value: bytes) -> int:
        """How many of a record's names nobody reads; 0 where it is no object."""
        try:
            named = _OBJECT.decode(value)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return 0
        name = self.implied[source]
        if "type" in named:
            name = bytes(named["type"]).decode(errors="replace").strip('" ')
        return len(named.keys() - _FIELDS.get(name or "", _ALL_FIELDS))


def _text(event: Event) -> str | None:
    match event:
        case Browse():
            return event.query
        case Interaction():
            return event.text
        case _:
            return None


def _addressed(event: Event) -> str | None:
    if not isinstance(event, Interaction):
        return None
    return addressed(event.target_user_id, event.user_id)


def _check_erase_key(key: bytes | None) -> None:
    """An erase must name a user as an event would."""
    if key is None:
        raise Refused(Reason.WRONG_KEY, "no key and no value: nobody to erase")
    try:
        user = key.decode()
    except UnicodeDecodeError:
        raise Refused(Reason.WRONG_KEY, "the key is not UTF-8") from None
    if not 1 <= len(user) <= 256:
        raise Refused(Reason.WRONG_KEY, "the key must have 1 to 256 characters")


def _json_name(parsed: object) -> str:
    match parsed:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "number"


_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FIELDS = {
    "browse": fields_of(BrowseRecord),
    "purchase": fields_of(PurchaseRecord),
    "interaction": fields_of(InteractionRecord),
}
_ALL_FIELDS = frozenset().union(*_FIELDS.values())
