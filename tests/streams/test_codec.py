"""The codec: each promise of its text, held on both paths."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from featurestore.columns import EVENT, NO_ID, STEPS, Erase
from featurestore.events import action_code, category_code, target_code, word_codes
from featurestore.partitioner import partition
from featurestore.settings import FeatureSettings
from streams.codec import Codec, merge
from streams.columns import content
from streams.deadletter import ORIGIN, Reason
from streams.settings import KafkaSettings, Settings
from tests.streams.coded import (
    BROWSE,
    CODECS,
    INTERACTION,
    ONE,
    PURCHASE,
    RULES,
    Record,
    decode,
    event,
    purchase,
    reason,
)


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
