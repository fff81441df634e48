"""The codec: both paths equal over nasty records, and each promise of its text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from featurestore.columns import EVENT, NO_ID, STEPS, Erase
from featurestore.events import TYPES, action_code, category_code, target_code, word_codes
from featurestore.partitioner import partition
from featurestore.settings import DatedRate, FeatureSettings, ValueRule, ValueSettings
from streams.codec import Codec, Decoded, merge
from streams.columns import content
from streams.deadletter import ORIGIN, Reason
from streams.settings import KafkaSettings, Settings


@dataclass(frozen=True, slots=True)
class Record:
    """A record without a broker: the codec takes anything of this shape."""

    key: bytes | None
    value: bytes | None
    offset: int = 0
    timestamp: int = 1_315_656_000_000
    headers: tuple[tuple[str, bytes], ...] = ()


ONE = KafkaSettings(partitions=1)
BROWSE, PURCHASE, INTERACTION = 0, 1, 2
RULES = ValueSettings(
    currency="GBP",
    rules=(
        ValueRule(type="purchase", weight=Decimal("0.3")),
        ValueRule(type="interaction", action="play", field="duration_ms", weight=Decimal("0.001")),
        ValueRule(type="interaction", action="share", field="one"),
        ValueRule(type="interaction", field="rating"),
        ValueRule(type="browse", field="dwell_ms"),
    ),
    rates=(DatedRate(currency="EUR", since="2011-01-01", rate=Decimal("0.85")),),
)
CODECS = [
    Codec(Settings(kafka=ONE)),
    Codec(Settings(kafka=KafkaSettings(partitions=3, mixed="events"), value=RULES)),
    Codec(
        Settings(
            kafka=KafkaSettings(partitions=2, partitioner="fnv1a"),
            value=RULES,
            features=FeatureSettings(derive_ids=True, social=True, interests=True),
        )
    ),
    Codec(Settings(kafka=ONE, value=ValueSettings(kind="count", currency="points", rules=()))),
]


def event(**fields: Any) -> bytes:
    base = {"event_id": "e1", "user_id": "ada", "event_time": "2011-09-10T12:00:00Z"}
    return json.dumps(base | fields).encode()


def purchase(**fields: Any) -> Record:
    return Record(b"ada", event(**{"amount": "12.50"} | fields))


def decode(*records: Record, source: int = PURCHASE, codec: Codec = CODECS[0]) -> Decoded:
    """Decode on both paths, which must agree."""
    fast = codec.decode(source, 0, records)
    same(fast, codec.decode_slow(source, 0, records))
    return fast


def same(fast: Decoded, slow: Decoded) -> None:
    assert fast.rejected == slow.rejected
    assert fast.no_id == slow.no_id
    a, b = fast.batch, slow.batch
    assert a.users == b.users
    assert a.user.tolist() == b.user.tolist()
    assert a.events.tobytes() == b.events.tobytes()
    assert a.offset.tolist() == b.offset.tolist()
    assert a.log_ms.tolist() == b.log_ms.tolist()
    assert a.erases == b.erases
    assert a.event_id == b.event_id
    assert a.target == b.target


def reason(record: Record, source: int = PURCHASE) -> Reason:
    decoded = decode(record, source=source)
    assert decoded.batch.size == 0
    (rejected,) = decoded.rejected
    assert 0 < len(rejected.detail) <= 200
    rejected.detail.encode()
    return rejected.reason


# ---- equality of both paths ----------------------------------------------------------------

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


@st.composite
def values(draw: st.DrawFn) -> bytes:
    """JSON objects near the contract: mostly right fields, some nasty, some twice."""
    pairs = [("user_id", '"ada"'), ("event_time", draw(TIMES))]
    pairs += draw(st.sampled_from([[], [("amount", '"1.50"')], [("amount", "2.5e1")]]))
    pairs += draw(st.sampled_from([[], [("action", '"play"')], [("action", '"rate"')]]))
    pairs += draw(st.sampled_from([[], [("type", '"purchase"')], [("type", '"interaction"')]]))
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from([*OF_FIELD, *NAMES]))
        pairs.append((name, draw(OF_FIELD.get(name, JUNK))))
    pairs = draw(st.permutations(pairs))
    body = ",".join(f'"{name}":{value}' for name, value in pairs)
    text = f"{{{body}}}"
    return draw(st.sampled_from([text, f" {text}\n", f"\ufeff{text}", f"{text}x"])).encode(
        errors="surrogatepass"
    )


HEADERS = st.sampled_from(
    [
        (),
        (("trace", b"1"),),
        (
            ("ce_specversion", b"1.0"),
            ("ce_id", b"7"),
            ("ce_source", b"s"),
            ("ce_type", b"a.browse"),
        ),
        (("content-type", b"application/cloudevents+json"),),
        (("CE_specversion", b"1.0"), ("ce_time", b"\xff")),
    ]
)


@given(
    st.lists(
        st.tuples(
            st.one_of(st.just(b"ada"), st.sampled_from([None, b"", b"bob", b"\xff", b"a" * 300])),
            st.one_of(values(), st.binary(max_size=30), st.none()),
            HEADERS,
        ),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from(range(len(CODECS))),
    st.integers(0, 2),
)
def test_both_paths_say_the_same_of_whatever_comes(
    rows: list[tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]],
    which: int,
    source: int,
) -> None:
    codec = CODECS[which]
    source = 0 if which == 1 else source
    records = [Record(k, v, at * 3, 1000 + at, h) for at, (k, v, h) in enumerate(rows)]
    for _ in range(2):  # again, with warm caches
        fast, slow = codec.decode(source, 0, records), codec.decode_slow(source, 0, records)
        same(fast, slow)
    assert not [one for one in fast.rejected if one.reason == Reason.UNREADABLE]
    handled = fast.batch.size + len(fast.batch.erases) + len(fast.rejected)
    assert handled == len(records)
    if len(records) <= 16:
        assert fast.unknown_fields == slow.unknown_fields


@given(st.data())
def test_a_mostly_right_event_is_mostly_taken_and_equal(data: st.DataObject) -> None:
    source = data.draw(st.integers(0, 2))
    fields: dict[str, Any] = {
        "user_id": data.draw(st.text(min_size=1, max_size=20)),
        "event_time": data.draw(st.integers(-(10**13), 10**14)),
        "event_id": data.draw(st.none() | st.text(min_size=1, max_size=9)),
        "category": data.draw(st.none() | st.text(max_size=9)),
        "properties": data.draw(st.none() | st.dictionaries(st.text(), st.integers())),
        "action": data.draw(st.text(min_size=1, max_size=9)),
        "amount": str(data.draw(st.decimals(-(10**9), 10**9, places=8))),
        "rating": data.draw(st.none() | st.integers(0, 5)),
    }
    value = json.dumps(fields, ensure_ascii=data.draw(st.booleans())).encode()
    record = Record(fields["user_id"].encode(), value)
    decoded = decode(record, source=source)
    assert decoded.rejected == []
    assert decoded.batch.events["time_ms"].tolist() == [fields["event_time"]]


# ---- the promises --------------------------------------------------------------------------


def test_a_purchase_becomes_one_row() -> None:
    decoded = decode(purchase(category="gifts", amount="12.3456785"))
    (row,) = decoded.batch.events
    assert decoded.rejected == []
    assert decoded.batch.users == ["ada"]
    assert row["time_ms"] == 1_315_656_000_000
    assert row["value_micro"] == 12_345_678  # half to even
    assert (row["kind"], row["source"], row["flags"]) == (1, PURCHASE, STEPS)
    assert (row["action"], row["category"]) == (0, category_code("gifts"))
    assert decoded.batch.event_id == ["e1"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (Record(b"ada", b""), Reason.NOT_JSON),
        (Record(b"ada", b"{"), Reason.NOT_JSON),
        (Record(b"ada", b"\xef\xbb\xbf" + event(amount=1)), Reason.NOT_JSON),
        (Record(b"ada", event(amount=1).replace(b"e1", b"\xff")), Reason.NOT_JSON),
        (Record(b"ada", event(amount=1, text="x").replace(b'"x"', b"NaN")), Reason.NOT_JSON),
        (Record(b"ada", b'{"a":' * 100_000), Reason.NOT_JSON),
        (Record(b"ada", b'{"a":' * 101 + b"1" + b"}" * 101), Reason.NOT_JSON),
        (purchase(page="\ud800"), Reason.NOT_JSON),
        (Record(b"ada", b"[]"), Reason.NOT_OBJECT),
        (Record(b"ada", b"null"), Reason.NOT_OBJECT),
        (Record(b"ada", b'"\\u0041"'), Reason.NOT_OBJECT),
        (Record(b"ada", b"x" * (2 << 20)), Reason.TOO_LARGE),
        (Record(b"ada", event()), Reason.MISSING_FIELD),
        (Record(b"ada", b'{"amount":1,"event_time":1}'), Reason.MISSING_FIELD),
        (purchase(amount=True), Reason.INVALID_FIELD),
        (purchase(amount=None), Reason.INVALID_FIELD),
        (purchase(amount="12,50"), Reason.INVALID_FIELD),
        (purchase(amount=10**25), Reason.INVALID_FIELD),
        (Record(b"ada", event(amount=7).replace(b"7", b"1e999")), Reason.INVALID_FIELD),
        (Record(b"ada", event(amount=7).replace(b"7", b"9" * 10_000)), Reason.INVALID_FIELD),
        (purchase(event_time=True), Reason.INVALID_FIELD),
        (purchase(event_time=1.5), Reason.INVALID_FIELD),
        (purchase(event_time="0000-01-01T00:00:00Z"), Reason.INVALID_FIELD),
        (purchase(event_id=""), Reason.INVALID_FIELD),
        (purchase(event_id="x" * 129), Reason.INVALID_FIELD),
        (purchase(items=[{"price": "dear"}]), Reason.INVALID_FIELD),
        (purchase(properties=[]), Reason.INVALID_FIELD),
        (purchase(type="refund"), Reason.INVALID_FIELD),
        (purchase(type="browse"), Reason.INVALID_FIELD),
        (purchase(currency="gbp"), Reason.INVALID_FIELD),
        (purchase(currency="USD"), Reason.UNKNOWN_CURRENCY),
        (Record(b"bob", event(amount=1)), Reason.WRONG_KEY),
        (Record(None, event(amount=1)), Reason.WRONG_KEY),
        (Record(None, None), Reason.WRONG_KEY),
        (Record(b"", None), Reason.WRONG_KEY),
        (Record(b"\xff", None), Reason.WRONG_KEY),
    ],
)
def test_each_fault_has_its_reason(record: Record, expected: Reason) -> None:
    assert reason(record) == expected


def test_neighbours_of_a_bad_record_are_unharmed() -> None:
    bad = Record(b"ada", b"\x00", 1)
    decoded = decode(Record(b"ada", event(amount=1), 0), bad, Record(b"ada", event(amount=2), 2))
    assert decoded.batch.offset.tolist() == [0, 2]
    assert [(r.offset, r.reason) for r in decoded.rejected] == [(1, Reason.NOT_JSON)]


def test_of_a_name_given_twice_the_last_counts() -> None:
    value = event(amount="x", currency=5)[:-1] + b',"amount":"3","currency":"GBP"}'
    assert decode(Record(b"ada", value)).batch.events["value_micro"].tolist() == [3_000_000]
    mixed = event(type="browse", amount=3)[:-1] + b',"type":"purchase"}'
    codec = Codec(Settings(kafka=KafkaSettings(partitions=1, mixed="events")))
    assert decode(Record(b"ada", mixed), source=0, codec=codec).batch.events["kind"].tolist() == [1]


def test_a_mixed_topic_implies_no_type() -> None:
    codec = Codec(Settings(kafka=KafkaSettings(partitions=1, mixed="events")))
    decoded = decode(purchase(), purchase(type="purchase"), source=0, codec=codec)
    assert [r.reason for r in decoded.rejected] == [Reason.MISSING_FIELD]
    assert decoded.batch.size == 1


def test_a_null_value_erases() -> None:
    decoded = decode(Record(b"ada", event(amount=1), 4), Record(b"bob", None, 5, timestamp=77))
    assert decoded.batch.users == ["ada", "bob"]
    assert decoded.batch.erases == [Erase(1, PURCHASE, 77)]


def test_an_amount_of_zero_is_a_free_order_and_steps_nothing() -> None:
    decoded = decode(purchase(amount="-0.00"))
    assert decoded.batch.events["value_micro"].tolist() == [0]
    assert decoded.batch.events["flags"].tolist() == [0]


def test_an_event_without_id_is_told_apart_by_its_position() -> None:
    again = event(amount=1, event_id=None)
    decoded = decode(Record(b"ada", again, 1), Record(b"ada", again, 2))
    assert decoded.no_id == 2
    assert (decoded.batch.events["flags"] & NO_ID).all()
    assert len(set(decoded.batch.events["id_lo"].tolist())) == 2


def test_an_id_derived_from_the_content_is_shared_by_a_repeat() -> None:
    derive = FeatureSettings(derive_ids=True)
    codec = Codec(Settings(kafka=ONE, features=derive))
    again = event(amount=1, event_id=None)
    decoded = decode(Record(b"ada", again, 1), Record(b"ada", again, 2), codec=codec)
    assert decoded.no_id == 0
    assert len(set(decoded.batch.events["id_lo"].tolist())) == 1


def test_an_event_without_id_that_is_sent_again_counts_once() -> None:
    nameless = event(amount=1, event_id=None)

    def again(offset: int, of: bytes, value: bytes = nameless) -> Record:
        return Record(b"ada", value, offset, headers=((ORIGIN, of),))

    forged = Record(b"ada", nameless, 9, headers=((ORIGIN, b"me"),))
    decoded = decode(again(1, b"3:41"), again(2, b"3:41"), again(3, b"3:42"), forged)
    first, second, third, fourth = decoded.batch.events["id_lo"].tolist()
    assert first == second
    assert len({second, third, fourth}) == 3
    assert (decoded.batch.events["flags"] & NO_ID).tolist() == [0, 0, 0, 1]
    # A topic made anew may hold another event at the place of an old one.
    (other,) = decode(again(1, b"3:41", event(amount=2, event_id=None))).batch.events["id_lo"]
    assert other != first


def test_identity_is_scoped_by_topic_and_type() -> None:
    same_id = event(amount=1, action="like")
    hashes = {
        decode(Record(b"ada", same_id), source=s).batch.events["id_hi"].tolist()[0]
        for s in range(3)
    }
    assert len(hashes) == 3


def test_content_differs_where_the_fold_would() -> None:
    first, second, third = decode(
        purchase(), purchase(amount="12.51"), purchase(item_id="other"), codec=CODECS[0]
    ).batch.events["content"]
    assert first != second
    assert first == third


def test_whom_an_interaction_addresses_is_folded_only_where_the_setting_says_so() -> None:
    said = ["bo", "cy", "ada", "", None]
    records = [
        Record(b"ada", event(action="message", target_user_id=target), offset=i)
        for i, target in enumerate(said)
    ]
    on = Codec(Settings(kafka=ONE, features=FeatureSettings(social=True)))
    told = decode(*records, source=INTERACTION, codec=on).batch
    assert told.target == ["bo", "cy", None, None, None]
    assert told.events["target"].tolist() == [target_code("bo"), target_code("cy"), 0, 0, 0]
    silent = decode(*records, source=INTERACTION).batch
    assert silent.target == told.target
    assert not silent.events["target"].any()
    # Another target under a known id is other content only to who reads targets.
    assert len(set(told.events["content"].tolist())) == 3
    assert set(silent.events["content"].tolist()) == {int(told.events["content"][4])}


def test_what_events_are_about_is_folded_only_where_the_setting_says_so() -> None:
    said: list[tuple[int, dict[str, Any]]] = [
        (BROWSE, {"category": "shoes", "query": "Red running shoes"}),
        (INTERACTION, {"action": "comment", "text": "red!"}),
        (PURCHASE, {"amount": 1, "category": "shoes"}),
        (BROWSE, {}),
    ]
    on = Codec(Settings(kafka=ONE, features=FeatureSettings(interests=True)))
    for source, fields in said:
        record = Record(b"ada", event(**fields))
        (told,) = decode(record, source=source, codec=on).batch.events
        text = fields.get("query", fields.get("text"))
        assert tuple(told["words"].tolist()) == word_codes(fields.get("category"), text)
        (silent,) = decode(record, source=source).batch.events
        assert not silent["words"].any()
        assert (silent["content"] == told["content"]) == (fields == {})


def test_content_of_an_event_without_target_is_what_it_always_was() -> None:
    events = np.zeros(2, EVENT)
    for name, values in (("time_ms", (1, 2)), ("value_micro", (5, -6)), ("action", (1, 2))):
        events[name] = values
    events["category"], events["kind"] = (3, 4), (1, 2)
    assert content(events).tolist() == [973820274, 1174970735]


def test_the_value_table_is_exact_and_rounds_once() -> None:
    codec = Codec(Settings(kafka=ONE, value=RULES))
    worth = decode(
        purchase(),
        purchase(currency="EUR", amount="0.000001"),
        purchase(currency="EUR", amount="100"),
        codec=codec,
    ).batch.events["value_micro"]
    assert worth.tolist() == [3_750_000, 0, 25_500_000]
    early = decode(purchase(currency="EUR", event_time="2010-12-31T23:59:59Z"), codec=codec)
    assert [r.reason for r in early.rejected] == [Reason.UNKNOWN_CURRENCY]


@pytest.mark.parametrize(
    ("fields", "micro", "steps"),
    [
        ({"action": "play", "duration_ms": 90_000}, 90_000_000, True),
        ({"action": "play"}, 0, False),
        ({"action": "share"}, 1_000_000, True),
        ({"action": "rate", "rating": 4.5}, 4_500_000, True),
        ({"action": "cart_add"}, 0, True),
        ({"action": "like"}, 0, False),
    ],
)
def test_actions_are_worth_what_the_table_says(
    fields: dict[str, Any], micro: int, steps: bool
) -> None:
    codec = Codec(Settings(kafka=ONE, value=RULES))
    decoded = decode(Record(b"ada", event(**fields)), source=INTERACTION, codec=codec)
    (row,) = decoded.batch.events
    assert row["value_micro"] == micro
    assert row["action"] == action_code(fields["action"])
    assert bool(row["flags"] & STEPS) is steps


def test_a_value_too_large_for_the_columns_is_refused() -> None:
    codec = Codec(Settings(kafka=ONE, value=RULES))
    record = Record(b"ada", event(dwell_ms=2**53 - 1))
    decoded = decode(record, source=BROWSE, codec=codec)
    assert [r.reason for r in decoded.rejected] == [Reason.INVALID_FIELD]


def test_misrouted_records_are_named_and_their_users_left_out() -> None:
    kafka = KafkaSettings(partitions=8)
    codec = Codec(Settings(kafka=kafka))
    users = [f"user-{i}" for i in range(100)]
    records: list[Record] = [
        Record(u.encode(), None if i % 10 == 0 else event(user_id=u, amount=1), i)
        for i, u in enumerate(users)
    ]
    decoded = decode(*records, codec=codec)
    here = [user for user in users if partition(user, 8) == 0]
    assert sorted(decoded.batch.users) == sorted(here)
    assert len(decoded.rejected) == 100 - len(here)
    assert {r.reason for r in decoded.rejected} == {Reason.MISROUTED}
    assert "kafka.partitioner" in decoded.rejected[0].detail
    assert decoded.batch.user.max() < len(decoded.batch.users)


def test_unknown_fields_are_counted() -> None:
    assert decode(purchase(colour="red", page="browse only")).unknown_fields == 2
    many = [purchase(colour="red")] * 64
    assert CODECS[0].decode(PURCHASE, 0, many).unknown_fields == 64


def cloud(**fields: bytes) -> tuple[tuple[str, bytes], ...]:
    return tuple((f"ce_{name}", value) for name, value in fields.items())


def test_a_binary_cloudevent_fills_in_from_its_headers() -> None:
    headers = cloud(
        specversion=b"1.0",
        id=b"e9",
        source=b"/shop",
        type=b"com.shop.purchase",
        time=b"2011-09-10T12:00:00Z",
        subject=b"ada",
    )
    decoded = decode(Record(b"ada", b'{"amount":"2"}', headers=headers))
    assert decoded.rejected == []
    assert decoded.batch.event_id == ["e9"]
    assert decoded.batch.events["time_ms"].tolist() == [1_315_656_000_000]


def test_a_structured_cloudevent_is_unwrapped() -> None:
    envelope = {
        "specversion": "1.0",
        "id": "e9",
        "source": "/shop",
        "type": "com.shop.purchase",
        "time": "2011-09-10T12:00:00Z",
        "data": {"user_id": "ada", "amount": "2"},
    }
    headers = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)
    codec = Codec(Settings(kafka=KafkaSettings(partitions=1, mixed="events")))
    record = Record(b"ada", json.dumps(envelope).encode(), headers=headers)
    decoded = decode(record, source=0, codec=codec)
    assert decoded.rejected == []
    assert decoded.batch.events["value_micro"].tolist() == [2_000_000]
    encoded = {k: v for k, v in envelope.items() if k != "data"}
    encoded["data_base64"] = "eyJ1c2VyX2lkIjoiYWRhIiwiYW1vdW50IjoiMiJ9"
    again = decode(
        Record(b"ada", json.dumps(encoded).encode(), headers=headers), source=0, codec=codec
    )
    assert again.batch.events.tobytes() == decoded.batch.events.tobytes()


def test_ids_of_two_cloudevent_sources_are_not_one_event() -> None:
    def of(source: bytes) -> Record:
        headers = cloud(specversion=b"1.0", id=b"1", source=source, time=b"2011-09-10T12:00:00Z")
        return Record(b"ada", b'{"user_id":"ada","amount":"2"}', headers=headers)

    decoded = decode(of(b"/a"), of(b"/b"), of(b"/a"))
    first, second, third = decoded.batch.events["id_hi"].tolist()
    assert first == third != second


def test_merging_sources_keeps_each_ones_order_and_one_row_a_user() -> None:
    browsed = decode(Record(b"bob", event(user_id="bob"), 0), source=BROWSE)
    bought = decode(
        Record(b"ada", event(amount=1), 5), Record(b"bob", event(user_id="bob", amount=1), 6),
        Record(b"bob", None, 7),
    )  # fmt: skip
    batch = merge([browsed, bought])
    assert batch.users == ["bob", "ada"]
    assert batch.user.tolist() == [0, 1, 0]
    assert batch.offset.tolist() == [0, 5, 6]
    assert batch.erases[0].user == 0
    assert merge([]).size == 0


def test_a_batch_of_nothing_is_a_batch() -> None:
    decoded = decode()
    assert (decoded.batch.size, decoded.batch.users) == (0, [])


@given(st.lists(st.integers(0, 5), max_size=8))
@example([])
def test_an_empty_cache_changes_nothing(amounts: Sequence[int]) -> None:
    records = [purchase(amount=str(a), category=f"c{a}") for a in amounts]
    fresh = Codec(Settings(kafka=ONE)).decode(PURCHASE, 0, records)
    warm = CODECS[0].decode(PURCHASE, 0, records)
    assert np.array_equal(fresh.batch.events, warm.batch.events)
