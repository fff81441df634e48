"""Records that producers get wrong, drawn by Hypothesis: good ones whose structure is hurt.

A record of one of the three types loses a field, has one renamed, given another kind of value, or
given twice, its fields in another order; then perhaps its bytes are hurt, its key, its headers, or
its place. Where a test fails Hypothesis looks for the smallest that does, which `bad.mutants`, the
same by a seed, cannot.
"""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from featurestore.events import TYPES
from tests.parity.bad import HEADERS, INTERACTION, PURCHASE, Bad
from tests.parity.nasty import START_MS

NUMBERS = st.one_of(
    st.integers(-(10**25), 10**25).map(str),
    st.from_regex(r"-?(0|[1-9][0-9]{0,8})\.[0-9]{1,30}", fullmatch=True),
    st.sampled_from(
        [
            "0",
            "-0",
            "-0.0",
            "1e999",
            "-1e999",
            "1e-999",
            "NaN",
            "Infinity",
            "-Infinity",
            "01",
            "1.",
            "9" * 10000,
            "9007199254740991",
            "9007199254740992",
            "253402300799999",
            "253402300800000",
            "-62135596800000",
            "-62135596800001",
            "1E2",
            "1.0",
            ".5",
            "+1",
        ]
    ),
)
TIMES = st.sampled_from(
    [
        '"2011-09-10T12:00:00Z"',
        '"2011-09-10T12:00:00.123Z"',
        '"2011-09-10t12:00:00z"',
        "0",
        "-1",
        '"0000-01-01T00:00:00Z"',
        '"0001-01-01T00:00:00Z"',
        '"9999-12-31T23:59:59.9999Z"',
        '"9999-12-31T23:59:59-01:00"',
        '"1969-12-31T23:59:59.9999999Z"',
        '"2011-02-29T00:00:00Z"',
        '"2011-09-10T12:00:00"',
        '"2011-09-10 12:00:00+05:30"',
        '"2011-09-10T12:00:60Z"',
        "true",
        '"2011-09-10T24:00:00Z"',
        '"2011-09-10T12:00:00,5Z"',
        "null",
        "1.5",
        '"1315656000000"',
        '""',
        '"２011-09-10T12:00:00Z"',
        '"2011-09-10T12:00:0１Z"',
    ]
)
STRINGS = st.one_of(
    st.text(max_size=20).map(json.dumps),
    st.text(max_size=20).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from(
        [
            '"\\ud800"',
            '"\\ud83d\\ude00"',
            '"\\x"',
            '"\\u12"',
            '"a\tb"',
            '"\\u0000"',
            '"',
            '""',
            '"' + "a" * 128 + '"',
            '"' + "a" * 129 + '"',
            '"' + "😀" * 257 + '"',
        ]
    ),
)
JUNK = st.one_of(
    NUMBERS,
    STRINGS,
    st.sampled_from(
        [
            "null",
            "true",
            "false",
            "{}",
            "[]",
            '{"a":{"b":[1,2,{"c":null}]}}',
            "[1,]",
            '{"a":1,}',
            "[" * 101 + "]" * 101,
            "[" * 98 + "]" * 98,
            "[" * 100000,
            '{"a":' * 5000,
            '[{"item_id":"i","quantity":2,"price":"1.5"}]',
            '[{"price":true}]',
            '[{"price":1e999}]',
            '[{"quantity":"x"}]',
            '[{"item_id":5}]',
            "[null]",
            '[{"price":null,"x":1}]',
        ]
    ),
)
OF_FIELD: dict[str, st.SearchStrategy[str]] = {
    "user_id": st.one_of(st.just('"ada"'), STRINGS, JUNK),
    "event_time": st.one_of(TIMES, NUMBERS),
    "amount": st.one_of(NUMBERS, NUMBERS.map(lambda n: f'"{n}"'), JUNK),
    "currency": st.sampled_from(
        ['"GBP"', '"EUR"', '"USD"', '"gbp"', '"A1B"', '"EURO"', '"points"', '"GBP\\n"', "null", "1"]
    ),
    "type": st.one_of(st.sampled_from([f'"{t}"' for t in TYPES] + ['"erase"', "null", "1"])),
    "action": st.one_of(st.sampled_from(['"cart_add"', '"play"', '"share"', '"my own"']), JUNK),
}
NAMES = (
    *("event_id", "item_id", "category", "page", "query", "dwell_ms", "order_id", "items"),
    *("target_user_id", "rating", "duration_ms", "text", "properties", "unheard_of"),
)

_ID = b"d00000"
Pair = tuple[str, str]  # a field's name and its value as JSON


def _good(source: int, user: str, after_ms: int) -> list[Pair]:
    fields = [("user_id", f'"{user}"'), ("event_id", f'"{_ID.decode()}"')]
    fields += [("event_time", str(START_MS + after_ms)), ("type", f'"{TYPES[source]}"')]
    if source == PURCHASE:
        fields += [("amount", '"2.50"'), ("currency", '"GBP"'), ("order_id", '"o-1"')]
        return [*fields, ("items", '[{"item_id":"i","quantity":2,"price":"1.25"}]')]
    if source == INTERACTION:
        return [*fields, ("action", '"rate"'), ("rating", "4.5"), ("item_id", '"i"')]
    return [*fields, ("page", '"home"'), ("dwell_ms", "1500"), ("category", '"b\u00fcro"')]


@st.composite
def _hurt_fields(draw: st.DrawFn, pairs: list[Pair]) -> list[Pair]:
    """One field dropped, renamed, of another kind, or once more; or all in another order."""
    at = draw(st.integers(0, len(pairs) - 1))
    name, value = pairs[at]
    other = draw(st.sampled_from([*OF_FIELD, *NAMES]))
    how = draw(st.sampled_from(("drop", "rename", "retype", "retype", "twice", "more", "order")))
    if how == "drop":
        return pairs[:at] + pairs[at + 1 :]
    if how == "rename":
        renamed = draw(st.sampled_from((other, name.upper(), f" {name}", "\\u00" + name)))
        return [*pairs[:at], (renamed, value), *pairs[at + 1 :]]
    if how == "retype":
        return [*pairs[:at], (name, draw(OF_FIELD.get(name, JUNK))), *pairs[at + 1 :]]
    if how == "twice":
        return [*pairs, (name, draw(OF_FIELD.get(name, JUNK)))]
    if how == "more":
        return [*pairs, (other, draw(OF_FIELD.get(other, JUNK)))]
    return draw(st.permutations(pairs))


@st.composite
def _hurt_bytes(draw: st.DrawFn, value: bytes) -> bytes:
    """A bit flipped, a byte put in, or a stretch cut, doubled or kept alone."""
    low, high = sorted((draw(st.integers(0, len(value))), draw(st.integers(0, len(value)))))
    how = draw(st.sampled_from(("flip", "insert", "cut", "double", "alone", "around")))
    if how == "flip":
        bit = 1 << draw(st.integers(0, 7))
        return value[:low] + bytes(b ^ bit for b in value[low : low + 1]) + value[low + 1 :]
    if how == "insert":
        return value[:low] + draw(st.binary(min_size=1, max_size=3)) + value[low:]
    if how == "cut":
        return value[:low] + value[high:]
    if how == "double":
        return value[:high] + value[low:]
    if how == "alone":
        return value[low:high]
    around = draw(st.sampled_from((b" \n", b"\xef\xbb\xbf", b"\0", b"x")))
    return draw(st.sampled_from((around + value, value + around)))


@st.composite
def records(draw: st.DrawFn, users: int = 40) -> Bad:
    """One record of `drawn-<n>`, hurt or whole."""
    source = draw(st.integers(0, 2))
    user = f"drawn-{draw(st.integers(0, users - 1))}"
    pairs = _good(source, user, draw(st.integers(0, 99_999)))
    for _ in range(draw(st.sampled_from((0, 1, 1, 1, 2, 3)))):
        pairs = draw(_hurt_fields(pairs)) if pairs else pairs
    body = ",".join(f'"{name}":{value}' for name, value in pairs)
    value = f"{{{body}}}".encode(errors="surrogatepass")
    record = Bad("drawn", user, value, source=source, key=user.encode())
    how = draw(
        st.sampled_from((*("whole",) * 12, *("bytes",) * 4, "key", "headers", "place", "no"))
    )
    if how == "bytes":
        return replace(record, value=draw(_hurt_bytes(value)))
    if how == "key":
        keys = st.sampled_from((None, b"", user.encode() + b" ", b"k" * 300)) | st.binary(
            max_size=9
        )
        return replace(record, key=draw(keys))
    if how == "headers":
        return replace(record, headers=draw(st.sampled_from(HEADERS)))
    if how == "place":
        return replace(record, source=draw(st.integers(0, 2)), shift=draw(st.integers(0, 1)))
    if how == "no":
        return replace(record, value=draw(st.none() | st.binary(max_size=20)))
    return record


def drawn(count: int) -> list[Bad]:
    """So many records, the same in every run, each with an id of its own where one is left.

    Else they would repeat each other around an erasure of their user: no rule decides that (ADR 7).
    """
    found: list[Bad] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(records())
    def collect(record: Bad) -> None:
        own = b"d%05d" % len(found)
        value = record.value.replace(_ID, own) if record.value is not None else None
        found.append(replace(record, value=value))

    collect()
    return found
