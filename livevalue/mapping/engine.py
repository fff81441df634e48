"""Interprets a mapping: a vendor's message to Outcomes, one for each event in it.

Bad data is a value here too: a message never raises, it is parked with a reason, and what to
change stands in ADVICE. Same message, same events: ids are the vendor's or made of the message,
so reading a stream twice changes nothing (the fold drops repeats).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import ValidationError

from featurestore import times
from featurestore.events import MODELS, NotJson, loads
from livevalue.mapping import amounts
from livevalue.mapping.paths import Entry, at, text, unfolded
from livevalue.mapping.spec import Id, Rule, Sum
from livevalue.mapping.spec import Mapping as Spec

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://livevalue/mapping")  # stored in ids: fixed
_LONGEST_ID = 128
_1980_MS = 315_532_800_000
_EVENT_MOST = 10_000  # entries of one message

_TEXTS = {
    "browse": ("item_id", "category", "page", "query"),
    "purchase": ("item_id", "category", "order_id"),
    "interaction": ("item_id", "category", "target_user_id", "text"),
}
_MILLIS = {"browse": ("dwell_ms",), "interaction": ("duration_ms",)}

ADVICE = {
    "too_large": "raise LIVEVALUE_KAFKA__MAX_RECORD_BYTES, or have the sender split it",
    "not_json": "the stream must hold one JSON message a record; check its serializer",
    "not_object": "check --as: this vendor's messages are JSON objects",
    "missing_name": "check --as; a mapping of your own says where the name is (event_name.path)",
    "missing_user": "nobody is named: have the sender say who, or add a path to user.id",
    "missing_time": "add a path to time.paths; time.record = true takes the Kafka record's time",
    "invalid_time": "have the sender write the time in the unit that the mapping names (time.unit)",
    "missing_amount": "have the sender say the amount, or add a way to say it to money.order",
    "invalid_amount": "amounts are decimal numbers such as 19.90; other unit: --money-unit",
    "refund_without_amount": "have the sender say what was given back: the order was not seen here",
    "missing_currency": "say --currency, or have the sender name one with each amount",
    "invalid_currency": "a currency is three letters of ISO 4217, such as EUR",
    "needs_choice": "add a rule of your own for this name (docs/mapping.md)",
    "invalid_field": "the contract refuses this field: docs/mapping.md says what may be in it",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one event of a message: mapped, ignored, anonymous or parked."""

    status: str
    name: str = ""  # the vendor's
    event: dict[str, Any] | None = None
    time_ms: int = 0
    micro: int = 0
    reason: str = ""
    detail: str = ""
    known: bool = True  # a rule of the mapping has the name
    money: bool = False  # it is an order or a refund


class _Park(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an event stands: its entry, its number in the message, and what surrounds them."""

    entry: Entry
    index: int
    name: str
    raw: bytes
    record_ms: int | None


class Mapper:
    """Maps messages of one stream by one mapping."""

    def __init__(self, spec: Spec, *, separate: bool = False, limit: int = 1 << 20) -> None:
        self._spec = spec
        self._separate = separate
        self._limit = limit
        self._rules: dict[str, Rule | None] = {}
        self._orders = amounts.Orders()

    def map(self, raw: bytes | None, record_ms: int | None = None) -> list[Outcome]:
        """The outcomes of one message, in its order; never raises."""
        try:
            message = self._message(raw)
            entries = self._entries(message)
        except _Park as why:
            return [Outcome("parked", reason=why.reason, detail=why.detail)]
        assert raw is not None
        outcomes = []
        for index, fields in enumerate(entries):
            if isinstance(fields, Mapping):
                entry = Entry(self._opened(fields), message)
                outcomes.append(self._one(entry, index, raw, record_ms))
            else:
                said = f"entry {index} is no object"
                outcomes.append(Outcome("parked", reason="not_object", detail=said))
        return outcomes

    # ---- the message -----------------------------------------------------------------------

    def _message(self, raw: bytes | None) -> Mapping[str, Any]:
        if raw is None:
            raise _Park("not_json", "the record has no value")
        if len(raw) > self._limit:
            raise _Park("too_large", f"{len(raw)} bytes, more than {self._limit}")
        try:
            message = loads(raw)
        except NotJson as error:
            raise _Park("not_json", str(error)[:200]) from None
        if not isinstance(message, dict):
            raise _Park("not_object", f"the message is a {type(message).__name__}")
        return message

    def _entries(self, message: Mapping[str, Any]) -> list[Any]:
        path = self._spec.message.each
        listed = at(message, path) if path else None
        if listed is None:
            return [message]
        if not isinstance(listed, list) or len(listed) > _EVENT_MOST:
            raise _Park("not_object", f"{path} is no list of at most {_EVENT_MOST} events")
        return listed

    def _opened(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """With JSON in texts read, and typed pairs as plain objects."""
        for name in self._spec.message.json_text:
            if isinstance(inner := fields.get(name), str):
                try:
                    fields = {**fields, name: loads(inner.encode())}
                except (NotJson, UnicodeEncodeError):
                    fields = {**fields, name: None}
        return unfolded(fields, self._spec.message.unfold)

    # ---- one event -------------------------------------------------------------------------

    def _one(self, entry: Entry, index: int, raw: bytes, record_ms: int | None) -> Outcome:
        name = self._name(entry)
        if name is None:
            said = f"nothing at {self._spec.event_name.path}"
            return Outcome("parked", reason="missing_name", detail=said)
        if name not in self._rules:
            if len(self._rules) > 10_000:  # a sender that makes up names
                self._rules.clear()
            self._rules[name] = self._spec.rule_of(name)
        rule = self._rules[name]
        if rule is None or rule.type == "ignore":
            return Outcome("ignored", name, known=rule is not None)
        pays = rule.type == "purchase"
        try:
            return self._event(rule, _Place(entry, index, name, raw, record_ms))
        except _Park as why:
            return Outcome("parked", name, reason=why.reason, detail=why.detail[:200], money=pays)

    def _name(self, entry: Entry) -> str | None:
        found = text(entry.at(self._spec.event_name.path))
        other = self._spec.event_name.instead.get(found or "")
        return text(entry.at(other)) if other else found

    def _event(self, rule: Rule, place: _Place) -> Outcome:
        if rule.park:
            raise _Park("needs_choice", rule.park)
        entry, pays = place.entry, rule.type == "purchase"
        user = self._user(entry)
        if user is None:
            return Outcome("anonymous", place.name, money=pays)
        time_ms, digits = self._time(place)
        made: dict[str, Any] = {
            "type": rule.type,
            "event_id": self._id(rule.id or self._spec.id, place, digits),
            "user_id": user,
            "event_time": times.text(time_ms),
        }
        paths = {**self._spec.fields, **rule.fields}
        for field in _TEXTS[rule.type]:
            found = text(entry.first(paths.get(field, ()), self._spec.message.empty))
            if found is not None:
                made[field] = found
        for field in _MILLIS.get(rule.type, ()):
            found = text(entry.first(paths.get(field, ())))
            if found is not None and found.isascii() and found.isdigit() and len(found) < 16:
                made[field] = int(found)
        worth = 0
        if rule.type == "interaction":
            made["action"] = rule.action or self._spec.plain(place.name).replace(" ", "_")
            rating = _or_none(entry.first(paths.get("rating", ())))
            if rating is not None:
                made["rating"] = amounts.plain(amounts.micro(rating))
        elif pays:
            order = made.get("order_id")
            if order and not rule.refund and self._orders.repeats(user, order, made["event_id"]):
                said = f"order {order} came before under another id"
                return Outcome("ignored", place.name, reason="repeated_order", detail=said)
            worth = self._pay(rule, entry, made)
        made["properties"] = {"vendor": self._spec.name, "event": place.name[:256]}
        try:
            MODELS[rule.type].model_validate(made)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise _Park("invalid_field", f"{where}: {first['msg']}") from None
        return Outcome("mapped", place.name, made, time_ms, worth, money=pays)

    def _user(self, entry: Entry) -> str | None:
        """Whose it is; None for a visitor under the policy to skip those."""
        spec, empty = self._spec.user, self._spec.message.empty
        visitor = any(entry.at(path) is value for path, value in spec.anonymous_if.items())
        found = text(entry.first(spec.id, empty))
        if found is not None and not visitor:
            return found
        found = found or text(entry.first(spec.anonymous, empty))
        if found is None:
            raise _Park("missing_user", f"nothing at {', '.join((*spec.id, *spec.anonymous))}")
        return found if self._separate else None

    def _time(self, place: _Place) -> tuple[int, str]:
        """Milliseconds, and the time's digits as they stood, for ids."""
        spec = self._spec.time
        found = place.entry.first(spec.paths)
        if found is None:
            if spec.record and place.record_ms is not None:
                return place.record_ms, str(place.record_ms * 1000)
            raise _Park("missing_time", f"nothing at {', '.join(spec.paths)}")
        said = text(found)
        if said is None:
            raise _Park("invalid_time", f"{type(found).__name__} is no time")
        try:
            if spec.unit == "text":
                return _parsed(said, spec.utc), said
            if not (said.isascii() and said.isdigit()) or len(said) > 20:
                raise times.TimeError(f"not a whole number: {said[:40]!r}")
            ms = times.checked(int(said) // (1000 if spec.unit == "micros" else 1))
        except times.TimeError as error:
            raise _Park("invalid_time", str(error)) from None
        if ms < _1980_MS:
            raise _Park("invalid_time", f"{said} {spec.unit} is before 1980: in another unit?")
        return ms, said

    def _id(self, spec: Id, place: _Place, digits: str) -> str:
        found = text(place.entry.first(spec.paths, self._spec.message.empty))
        if found is not None:
            return found if len(found) <= _LONGEST_ID else _uuid5("long", found)
        if not spec.uuid5:
            # Without an id of the vendor's the message itself is one: read again it is the same.
            return _uuid5("content", place.raw.hex(), str(place.index))
        special = {"#index": str(place.index), "#name": place.name, "#time": digits}
        return _uuid5(
            *(
                special[part] if part in special else text(place.entry.first(part.split("|"))) or ""
                for part in spec.uuid5
            )
        )

    # ---- money -----------------------------------------------------------------------------

    def _pay(self, rule: Rule, entry: Entry, made: dict[str, Any]) -> int:
        """Amount, currency and items of an order or refund into `made`; millionths."""
        spec = self._spec
        code, unit = self._currency(entry), rule.money_unit or spec.money.unit
        listed = entry.at(spec.items.path) if spec.items.path else None
        listed = listed if isinstance(listed, list) else []
        lines = [one for one in listed if isinstance(one, Mapping)]
        ways = spec.money.refund if rule.refund else spec.money.order
        try:
            found = self._said(entry, ways, lines)
            worth = None
            if found is not None:
                self._need(code)
                worth = amounts.micro(amounts.major(found, unit, code))
        except amounts.NotMoney as error:
            raise _Park("invalid_amount", str(error)) from None
        user, order = made["user_id"], made.get("order_id")
        if rule.refund:
            # Senders write what was given back with either sign; nothing given back says nothing.
            worth = -abs(worth) if worth else None
            if worth is None:
                # Lines without prices are a part of the order: which part of its money is unknown.
                seen = None
                if order and not lines:
                    seen = self._orders.rest(user, order, made["event_id"])
                if seen is None:
                    raise _Park("refund_without_amount", f"order {order or 'unnamed'}")
                worth, code = -seen[0], seen[1]
            elif order:
                self._orders.refunded(user, order, made["event_id"], -worth)
        elif worth is None:
            raise _Park("missing_amount", f"order {order or 'unnamed'}")
        elif worth < 0:
            raise _Park("invalid_amount", f"an order of {amounts.plain(worth)}: is it a refund?")
        elif order:
            self._orders.add(user, order, made["event_id"], worth, code)
        made["amount"] = amounts.plain(worth)
        made["currency"] = code
        if items := [self._line(line, unit, code) for line in lines]:
            made["items"] = items
        return worth

    def _currency(self, entry: Entry) -> str:
        spec = self._spec
        found = entry.first(spec.money.currency, spec.message.empty)
        code = (text(found) or "").upper() if found is not None else spec.money.default_currency
        if found is not None and not (len(code) == 3 and code.isascii() and code.isalpha()):
            raise _Park("invalid_currency", repr(code[:40]))
        return code

    def _need(self, code: str) -> None:
        if not code:
            raise _Park("missing_currency", f"nothing at {', '.join(self._spec.money.currency)}")

    def _said(
        self, entry: Entry, ways: Iterable[Sum], lines: list[Mapping[str, Any]]
    ) -> Decimal | None:
        """The amount by the first way that says one, in the message's unit."""
        for way in ways:
            if way.items:
                total = self._total(lines)
            else:
                total = amounts.number(entry.at(way.path))
                for path in way.less if total is not None else ():
                    total = (total or Decimal()) - (amounts.number(entry.at(path)) or Decimal())
            if total is not None:
                return total
        return None

    def _total(self, lines: list[Mapping[str, Any]]) -> Decimal | None:
        """Sum of price x quantity; None where a line has no price."""
        if not lines:
            return None
        total = Decimal()
        for line in lines:
            one = Entry(line, line)
            price = amounts.number(one.first(self._spec.items.price))
            if price is None:
                return None
            quantity = amounts.number(one.first(self._spec.items.quantity))
            total += amounts.times(price, Decimal(1) if quantity is None else quantity)
        return total

    def _line(self, line: Mapping[str, Any], unit: str, code: str) -> dict[str, str]:
        """One line as the contract has it, less what is odd in it: no fold reads lines."""
        spec, one, made = self._spec.items, Entry(line, line), {}
        for field in ("item_id", "category"):
            found = text(one.first(getattr(spec, field), self._spec.message.empty))
            if found is not None:
                made[field] = found
        quantity, price = _or_none(one.first(spec.quantity)), _or_none(one.first(spec.price))
        if quantity is not None:
            made["quantity"] = amounts.plain(amounts.micro(quantity))
        if price is not None:
            try:
                price = amounts.major(price, unit, code)
                made["price"] = amounts.plain(amounts.micro(price))
            except amounts.NotMoney:
                pass
        return made


def _or_none(given: Any) -> Decimal | None:
    """A number where it is one: of fields that nothing depends on."""
    try:
        return amounts.number(given)
    except amounts.NotMoney:
        return None


def _uuid5(*parts: str) -> str:
    # Lengths in front, so that no two lists of parts read the same.
    return str(uuid.uuid5(_NAMESPACE, "".join(f"{len(part)}:{part}" for part in parts)))


def _parsed(said: str, utc: bool) -> int:
    """RFC 3339; where the mapping says so, a text without a zone is UTC.

    >>> _parsed("2024-05-22 17:09:29.220000", True) == _parsed("2024-05-22T17:09:29.22Z", False)
    True
    """
    try:
        return times.parse(said)
    except times.TimeError:
        if not utc:
            raise
        return times.parse(said + "Z")
