"""Records that producers get wrong: a corpus of the nastiest, and mutants of good ones by a seed.

`corpus` names what must become of each record; `mutants` are good records of all three types with
one to three injuries each: bits, cut and doubled bytes, fields of another kind, names given twice,
keys, headers, nulls, the wrong topic or partition. Same arguments, same records.
"""

from __future__ import annotations

import json
import random
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from featurestore.partitioner import partition as home
from streams.settings import KafkaSettings
from tests.parity.nasty import START_MS, TYPES

BROWSE, PURCHASE, INTERACTION = range(3)
Headers = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True)
class Bad:
    """One record; without a reason it is odd and good, and must count."""

    name: str
    user: str  # whose neighbours it lies between
    value: bytes | None
    reason: str = ""
    source: int = PURCHASE
    key: bytes | None = b""
    headers: Headers = ()
    shift: int = 0  # partitions away from where the key belongs

    def partition(self, kafka: KafkaSettings) -> int:
        """Where a producer puts it."""
        at = home(self.key if self.key else self.user, kafka.partitions, kafka.partitioner)
        return (at + self.shift) % kafka.partitions


def purchase(user: str, event_id: str | None, /, **more: Any) -> bytes:
    """A good purchase of 2.50."""
    event: dict[str, Any] = {"event_id": event_id, "user_id": user, "event_time": START_MS}
    return json.dumps(event | {"amount": "2.50"} | more).encode()


def _act(user: str, /, **more: Any) -> bytes:
    event = {"event_id": "bad", "user_id": user, "event_time": START_MS}
    return json.dumps(event | more).encode()


_CE: Headers = (
    ("ce_specversion", b"1.0"),
    ("ce_id", b"c"),
    ("ce_source", b"/shop"),
    ("ce_type", b"com.shop.purchase"),
)
_STRUCTURED: Headers = (("content-type", b"application/cloudevents+json"),)
_DEEP = b"[" * 100_000 + b"]" * 100_000


def corpus() -> list[Bad]:
    """Each record of a user of its own, `u<number>`."""
    rows: list[Bad] = []

    def add(name: str, reason: str, make: Callable[[str], bytes | None], **where: Any) -> None:
        user = f"u{len(rows)}"
        key = where.pop("key", user.encode())
        rows.append(Bad(name, user, make(user), reason, key=key, **where))

    def raw(name: str, reason: str, amount: bytes) -> None:
        add(name, reason, lambda u: purchase(u, "bad").replace(b'"2.50"', amount))

    def fields(name: str, reason: str, /, **more: Any) -> None:
        add(name, reason, lambda u: purchase(u, "bad", **more))

    def plain(name: str, reason: str, value: bytes) -> None:
        add(name, reason, lambda _: value)

    def cloud(name: str, reason: str, more: Headers, make: Callable[[str], bytes]) -> None:
        add(name, reason, make, headers=more)

    add("cut off", "not_json", lambda u: purchase(u, "bad")[:-7])
    plain("empty", "not_json", b"")
    plain("blanks", "not_json", b" \n\t")
    plain("zero bytes", "not_json", b"\0" * 64)
    plain("100,000 brackets", "not_json", b'{"user_id":"ada","properties":' + _DEEP + b"}")
    plain("100,000 brackets, never closed", "not_json", b"[" * 100_000)
    plain("100,000 objects, never closed", "not_json", b'{"a":' * 100_000)
    plain("a byte order mark alone", "not_json", b"\xef\xbb\xbf")
    plain("UTF-16", "not_json", '{"user_id":"ada"}'.encode("utf-16"))
    plain("avro of a schema registry", "not_json", b"\0\0\0\0\x07\x06ada\x02")
    plain("gzip", "not_json", b"\x1f\x8b\x08\0\0\0\0\0\0\3\3\0\0\0\0\0\0\0\0\0")
    add("a byte order mark", "not_json", lambda u: b"\xef\xbb\xbf" + purchase(u, "bad"))
    add("not utf-8", "not_json", lambda u: purchase(u, "bad").replace(b"bad", b"b\xe4d"))
    add("utf-8 cut", "not_json", lambda u: purchase(u, "bad").replace(b"bad", b"b\xf0\x9f\x98"))
    add("overlong utf-8", "not_json", lambda u: purchase(u, "bad").replace(b"bad", b"\xc0\xaf"))
    add(
        "a surrogate in utf-8",
        "not_json",
        lambda u: purchase(u, "\ue000").replace(b"\\ue000", b"\xed\xa0\x80"),
    )
    add("two documents", "not_json", lambda u: purchase(u, "bad") * 2)
    add("a line break in a string", "not_json", lambda u: purchase(u, "a@b").replace(b"@", b"\n"))
    add("a comma too many", "not_json", lambda u: purchase(u, "bad")[:-1] + b",}")
    add("a comment", "not_json", lambda u: b"/* x */" + purchase(u, "bad"))
    raw("a lone surrogate", "not_json", b'"2.50","order_id":"\\ud800"')
    raw("a lone surrogate that nobody reads", "not_json", b'"2.50","x":{"y":["\\udfff"]}')
    raw("a lone surrogate as a name", "not_json", b'"2.50","\\ud800":1')
    raw("nan", "not_json", b"NaN")
    raw("infinity", "not_json", b"-Infinity")
    raw("a leading zero", "not_json", b"02.5")
    raw("a hexadecimal number", "not_json", b"0x10")
    add("a list", "not_object", lambda u: b"[" + purchase(u, "bad") + b"]")
    plain("a number", "not_object", b"7")
    plain("a number of 10,000 digits alone", "not_object", b"9" * 10_000)
    plain("null", "not_object", b"null")
    plain("a string", "not_object", b'"{}"')
    raw("1e999", "invalid_field", b"1e999")
    raw("1e9999999999", "invalid_field", b"1e9999999999")
    raw("a number of 10,000 digits", "invalid_field", b"9" * 10_000)
    raw("ten billion and a millionth", "invalid_field", b"10000000000.000001")
    fields("10,000 digits as text", "invalid_field", amount="9" * 10_000)
    fields("nan as text", "invalid_field", amount="NaN")
    fields("infinity as text", "invalid_field", amount="Infinity")
    fields("digits of another script", "invalid_field", amount="２.５")
    fields("an amount with a blank", "invalid_field", amount=" 2.50")
    fields("a thousands separator", "invalid_field", amount="1,000.00")
    fields("amount true", "invalid_field", amount=True)
    fields("amount a list", "invalid_field", amount=[1])
    fields("amount empty", "invalid_field", amount="")
    fields("user a number", "invalid_field", user_id=16)
    fields("user null", "invalid_field", user_id=None)
    fields("user empty", "invalid_field", user_id="")
    fields("time in words", "invalid_field", event_time="yesterday")
    fields("time without zone", "invalid_field", event_time="2023-11-14T22:13:20")
    fields("time in seconds as text", "invalid_field", event_time="1700000000")
    fields("time a fraction", "invalid_field", event_time=1_700_000_000_000.5)
    fields("time true", "invalid_field", event_time=True)
    fields("time of 10,000 digits", "invalid_field", event_time=10**4000)
    fields("time beyond 64 bits", "invalid_field", event_time=1 << 80)
    fields("in the year 0", "invalid_field", event_time="0000-12-31T23:59:59Z")
    fields("before the year 1 by its zone", "invalid_field", event_time="0001-01-01T00:00:00+01:00")
    fields("in the year 10000", "invalid_field", event_time=253_402_300_800_000)
    fields("in the year 9999", "future", event_time="9999-12-31T23:59:59.999Z")
    fields("in the year 2096", "future", event_time=4_000_000_000_000)
    fields("a leap second", "invalid_field", event_time="2016-12-31T23:59:60Z")
    fields("the 29th of February 2023", "invalid_field", event_time="2023-02-29T00:00:00Z")
    fields("id of 129 characters", "invalid_field", event_id="x" * 129)
    fields("id empty", "invalid_field", event_id="")
    fields("id a number", "invalid_field", event_id=7)
    fields("items no list", "invalid_field", items={"item_id": "a"})
    fields("a price in words", "invalid_field", items=[{"price": "much"}])
    fields("properties a list", "invalid_field", properties=[])
    fields("another type", "invalid_field", type="gift")
    fields("a type of another topic", "invalid_field", type="browse")
    add("no amount", "missing_field", lambda u: _act(u))
    add("no time", "missing_field", lambda u: b'{"user_id":"%s","amount":"1"}' % u.encode())
    plain("an empty object", "missing_field", b"{}")
    raw("the last of two amounts is bad", "invalid_field", b'"2.50","amount":"x"')
    add("key of another", "wrong_key", lambda u: purchase(f"not {u}", "bad"))
    add("no key", "wrong_key", lambda u: purchase(u, "bad"), key=None)
    add("a key in quotes", "wrong_key", lambda u: purchase(u, "bad"), key=b'"ada"')
    add("a key that is no utf-8", "wrong_key", lambda u: purchase(u, "bad"), key=b"\xff\xfe")
    add("a key of 64 KiB", "wrong_key", lambda u: purchase(u, "bad"), key=b"k" * 65_536)
    add("an empty key", "wrong_key", lambda u: purchase(u, "bad"), key=b"")
    add("nobody is erased", "wrong_key", lambda _: None, key=None)
    add("a key without end is erased", "wrong_key", lambda _: None, key=b"k" * 300)
    fields("currency without rate", "unknown_currency", currency="JPY")
    fields("currency in small letters", "invalid_field", currency="gbp")
    add("no action", "missing_field", _act, source=INTERACTION)
    add(
        "rating in words",
        "invalid_field",
        lambda u: _act(u, action="rate", rating="x"),
        source=INTERACTION,
    )
    add(
        "duration below 0",
        "invalid_field",
        lambda u: _act(u, action="play", duration_ms=-1),
        source=INTERACTION,
    )
    add("dwell in words", "invalid_field", lambda u: _act(u, dwell_ms="long"), source=BROWSE)
    add("dwell beyond 53 bits", "invalid_field", lambda u: _act(u, dwell_ms=1 << 60), source=BROWSE)
    fields("2 MiB", "too_large", properties={"x": "y" * (2 << 20)})
    add("in the wrong partition", "misrouted", lambda u: purchase(u, "bad"), shift=1)
    add(
        "without an id in the wrong partition",
        "misrouted",
        lambda u: purchase(u, None),
        shift=1,
    )
    add("an erase in the wrong partition", "misrouted", lambda _: None, shift=1)
    cloud("an envelope that is none", "invalid_field", _STRUCTURED, lambda u: b"[1]")
    cloud("an envelope without data", "missing_field", _STRUCTURED, lambda u: b"{}")
    cloud("data that is no base64", "invalid_field", _STRUCTURED, lambda u: b'{"data_base64":"?"}')
    cloud(
        "brackets in base64",
        "invalid_field",
        _STRUCTURED,
        lambda u: b'{"data_base64":"' + b64encode(_DEEP) + b'"}',
    )
    cloud("data null", "not_object", _STRUCTURED, lambda u: b'{"data":null}')
    long: Headers = (*_CE, ("ce_id", b"c" * 10_000))
    cloud("an id of 10,000 letters", "invalid_field", long, lambda u: purchase(u, None))
    cloud(
        "attributes that are no utf-8",
        "invalid_field",
        (*_CE, ("ce_time", b"\xff\xfe")),
        lambda u: b'{"user_id":"%s","amount":1}' % u.encode(),
    )
    nulls: Headers = (("ce_specversion", None), ("ce_time", None))
    cloud("attributes without a value", "missing_field", nulls, lambda u: b'{"amount":1}')

    # Odd, and good: each is worth 2.50.
    raw("30 decimals", "", b"2.500000000000000000000000000001")
    raw("30 decimals as text", "", b'"2.499999999999999999999999999999"')
    raw("10,000 zeros behind the point", "", b"2.5" + b"0" * 10_000)
    raw("an exponent", "", b"0.00000025E+7")
    raw("the last of two amounts is good", "", b'"x","amount":"2.50"')
    raw("a name given twice deep inside", "", b'"2.50","properties":{"a":1,"a":{"a":[]}}')
    raw("100 brackets", "", b'"2.50","x":' + b"[" * 99 + b"]" * 99)
    raw("200,000 brackets in a string", "", b'"2.50","x":"' + b"[{" * 100_000 + b'"')
    raw("10,000 digits that nobody reads", "", b'"2.50","x":' + b"9" * 10_000)
    raw("1e999 that nobody reads", "", b'"2.50","x":1e999')
    raw("a pair of surrogates", "", b'"2.50","order_id":"\\ud83d\\ude00"')
    raw("a NUL inside", "", b'"2.50","order_id":"\\u0000"')
    fields("an id of 128 characters", "", event_id="😀" * 128)
    fields("nulls", "", currency=None, items=None, properties=None, order_id=None)
    fields("1,000 unknown names", "", **{f"n{n}": n for n in range(1000)})
    fields("900 KiB", "", properties={"x": "y" * (900 << 10)})
    add("blanks around", "", lambda u: b" \r\n" + purchase(u, "bad") + b"\n\n")
    add(
        "binary mode",
        "",
        lambda u: b'{"user_id":"%s","amount":2.5}' % u.encode(),
        headers=(*_CE, ("CE_Time", b"2023-11-14T22:13:20Z")),
    )
    add("binary mode twice over", "", lambda u: purchase(u, "bad"), headers=(*_CE, *_CE))
    add(
        "structured mode",
        "",
        lambda u: b'{"specversion":"1.0","id":"c","data":%s}' % purchase(u, None),
        headers=(("Content-Type", b"Application/CloudEvents+JSON; charset=utf-8"),),
    )
    add(
        "headers of every sort",
        "",
        lambda u: purchase(u, "bad"),
        headers=(
            ("", b""),
            ("x", None),
            ("x", b"\xff" * 1000),
            ("content-type", None),
            ("__connect.errors.topic", b"elsewhere"),
            ("ключ", b"\0"),
        ),
    )
    return rows


# ---- mutants

_JUNK = (
    *("null", "true", "false", "{}", "[]", "[[]]", "0", "-0", "1", "-1", "1.5", "-2.5e3", "1e999"),
    *("1e-999", "NaN", "Infinity", "01", "1.", ".5", "+1", "9007199254740991", "9007199254740992"),
    *("9223372036854775808", "-9223372036854775808", "253402300799999", "-62135596800001"),
    *('""', '"x"', '"ada"', '"1"', '"GBP"', '"EUR"', '"é"', '"a\tb"', '"\\x"', '"\\u0000"'),
    *('"\\ud800"', '"\\ud83d\\ude00"', '"0000-01-01T00:00:00Z"', '"9999-12-31T23:59:59Z"'),
    *('"2023-11-14T22:13:20Z"', '"2023-11-14 22:13:20+05:30"', '"2023-11-14T24:00:00Z"'),
    *('"2023-11-14T22:13:20.123456789Z"', '"' + "a" * 129 + '"', '"' + "😀" * 257 + '"'),
    *("9" * 5000, "0." + "3" * 30, "[" * 101 + "]" * 101, '{"a":' * 90 + "1" + "}" * 90),
    *('[{"item_id":"i","quantity":2,"price":"1.5"}]', '[{"price":1e999}]', "[null]"),
)
_NAMES = (
    *("type", "event_id", "user_id", "event_time", "item_id", "category", "page", "query"),
    *("dwell_ms", "amount", "currency", "order_id", "items", "action", "target_user_id"),
    *("rating", "duration_ms", "text", "properties", "unheard_of", "", "\\u0061mount"),
)
HEADERS: tuple[Headers, ...] = (
    (("trace", b"1"),),
    _CE,
    (*_CE, ("ce_time", b"2023-11-14T22:13:20Z"), ("ce_subject", b"user-1")),
    (("CE_specversion", b""), ("ce_time", b"\xff"), ("ce_subject", b"")),
    (("ce_specversion", None), ("ce_source", None)),
    _STRUCTURED,
    (("content-type", b"application/cloudevents-batch+json"),),
    (("content-type", None), ("", b"")),
)
Injury = Callable[[Bad, random.Random], Bad]


def _bytes(record: Bad, rng: random.Random) -> Bad:
    """A flipped bit, a byte put in or taken out, a stretch cut, doubled or put elsewhere."""
    value = bytearray(record.value or b"")
    a, b = sorted(rng.randrange(len(value) + 1) for _ in range(2))
    match rng.randrange(6):
        case 0 if a < len(value):
            value[a] ^= 1 << rng.randrange(8)
        case 1:
            value.insert(a, rng.randrange(256))
        case 2:
            del value[a : a + 1]
        case 3:
            del value[a:b]
        case 4:
            value[a:a] = value[a:b]
        case _:
            piece = value[a : a + 20]
            del value[a : a + 20]
            value[b:b] = piece
    return replace(record, value=bytes(value))


def _field(record: Bad, rng: random.Random) -> Bad:
    """A name more, or once more, with a value of any kind, in front or behind."""
    value = record.value or b""
    pair = f'"{rng.choice(_NAMES)}":{rng.choice(_JUNK)}'.encode()
    if rng.random() < 0.5:
        return replace(record, value=value[:-1] + b"," + pair + value[-1:])
    return replace(record, value=value[:1] + pair + b"," + value[1:])


def _swap(record: Bad, rng: random.Random) -> Bad:
    """One field's value for another of any kind, or the field left out."""
    try:
        event = json.loads(record.value or b"")
    except (ValueError, RecursionError):
        return record
    if not isinstance(event, dict) or not event:
        return record
    name = rng.choice(list(event))
    if rng.random() < 0.2:
        del event[name]
        return replace(record, value=json.dumps(event).encode(errors="replace"))
    marked = json.dumps(event | {name: "@@"}).encode(errors="replace")
    junk = rng.choice(_JUNK).encode(errors="surrogatepass")
    return replace(record, value=marked.replace(b'"@@"', junk))


def _key(record: Bad, rng: random.Random) -> Bad:
    user = record.user.encode()
    choices = (None, b"", b"\xff" + user, user + b" ", user.upper(), b"k" * rng.randrange(1, 400))
    return replace(record, key=rng.choice(choices))


def _header(record: Bad, rng: random.Random) -> Bad:
    return replace(record, headers=record.headers + rng.choice(HEADERS))


def _place(record: Bad, rng: random.Random) -> Bad:
    match rng.randrange(3):
        case 0:
            return replace(record, source=rng.randrange(3))
        case 1:
            return replace(record, shift=1)
        case _:
            return replace(record, value=rng.choice((None, b"", b"null", b"[]", b"\0")))


_INJURIES: tuple[Injury, ...] = (
    _bytes,
    _bytes,
    _field,
    _field,
    _swap,
    _swap,
    _key,
    _header,
    _place,
)


def mutants(count: int, users: int = 40, seed: int = 1) -> Iterator[Bad]:
    """`count` records of `user-<n>`; a twentieth is unharmed."""
    rng = random.Random(seed)
    for n in range(count):
        source = rng.randrange(3)
        user = f"user-{rng.randrange(users)}"
        event: dict[str, Any] = {"type": TYPES[source]} if n % 3 else {}
        event |= {"event_id": f"m{n}", "user_id": user, "event_time": START_MS + n}
        if source == PURCHASE:
            event |= {"amount": f"{rng.randrange(1, 9999) / 100:.2f}", "currency": "GBP"}
        elif source == INTERACTION:
            event |= {"action": rng.choice(("cart_add", "play", "rate")), "rating": 4.5}
        else:
            event |= {"page": "home", "dwell_ms": 1500, "category": "büro"}
        value = json.dumps(event, ensure_ascii=bool(n % 2)).encode()
        record = Bad(f"m{n}", user, value, source=source, key=user.encode())
        if rng.random() > 0.05:
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                record = rng.choice(_INJURIES)(record, rng)
        yield record
