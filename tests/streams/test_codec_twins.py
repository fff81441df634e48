"""The codec: the fast path and the readable one agree over whatever comes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from streams.codec import Codec
from streams.deadletter import Reason
from streams.settings import Settings
from tests.parity.drawn import JUNK, NAMES, OF_FIELD, TIMES
from tests.streams.coded import (
    CODECS,
    ONE,
    PURCHASE,
    Record,
    decode,
    purchase,
    same,
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


@given(st.lists(st.integers(0, 5), max_size=8))
@example([])
def test_an_empty_cache_changes_nothing(amounts: Sequence[int]) -> None:
    records = [purchase(amount=str(a), category=f"c{a}") for a in amounts]
    fresh = Codec(Settings(kafka=ONE)).decode(PURCHASE, 0, records)
    warm = CODECS[0].decode(PURCHASE, 0, records)
    assert np.array_equal(fresh.batch.events, warm.batch.events)
