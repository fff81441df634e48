"""Bytes of a state: they come back, damage is found, and every version is read for ever."""

from __future__ import annotations

import base64
import json
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.blob import HEADER, VERSION, WITH_EDGES, WITHOUT_EDGES
from featurestore.columns import BARE, EVENT, NO_TIME
from featurestore.digest import EXACT, Digest, exact_fields
from featurestore.errors import StateFormatError
from featurestore.state import EDGED, MARKS, PLAIN, SEEN, STATE, States, history
from tests.featurestore.logs import HOUR_MS, START_MS, Record, batch_of, in_time, play, settings
from tests.featurestore.test_vector import plain_log

GOLDEN = Path(__file__).parent.parent / "golden"


@cache
def some_states(seed: int) -> States:
    """Users with tails, remembered ids, rings and a marker, and some without."""
    folder = play(
        in_time(plain_log(random.Random(seed), 300, HOUR_MS // 8)), [25], settings(3, tail=2)
    )
    folder.fold(batch_of([Record(0, 999, "erased", START_MS, None)]))
    return folder.states()


def assert_equal(one: States, other: States) -> None:
    assert one.users == other.users
    assert one.settled.tobytes() == other.settled.tobytes()
    assert one.head.tobytes() == other.head.tobytes()
    for a, b in ((one.tail, other.tail), (one.ids, other.ids), (one.ring, other.ring)):
        assert a.starts.tolist() == b.starts.tolist()
        assert a.values.tobytes() == b.values.tobytes()
    assert one.erased_ms.tolist() == other.erased_ms.tolist()
    assert one.marks.tobytes() == other.marks.tobytes()


def test_states_come_back_from_their_bytes() -> None:
    states = some_states(1)
    assert len(states.tail.values)
    assert len(states.ids.values)
    assert len(states.ring.values)
    assert (states.erased_ms != NO_TIME).any()
    assert not states.has_tail().all()
    assert_equal(States.decode(states.users, states.encode()), states)


def test_users_without_bytes_start_blank_among_the_others() -> None:
    states = some_states(2)
    blobs = states.encode()
    mixed = States.decode(["new", *states.users, "newer"], [None, *blobs, None])
    assert mixed.known().tolist() == [False, *states.known().tolist(), False]
    assert_equal(mixed.select(np.arange(1, len(blobs) + 1)), states)
    assert mixed.select(np.array([0])).encode() == States.empty(["new"]).encode()


def test_selected_and_joined_states_are_the_users_own() -> None:
    states = some_states(3)
    rows = np.arange(len(states.users))[::-1]
    blobs = states.encode()
    assert states.select(rows).encode() == blobs[::-1]
    parts = [states.select(rows[:2]), states.select(rows[2:])]
    assert States.concat(parts).encode() == blobs[::-1]


def test_no_users_are_no_states() -> None:
    assert States.decode([], []).encode() == []
    assert States.empty([]).select(np.empty(0, np.intp)).users == []


@given(data=st.data())
def test_damage_is_refused_and_names_the_user(data: st.DataObject) -> None:
    states = some_states(4)
    blobs = states.encode()
    u = data.draw(st.integers(0, len(blobs) - 1))
    blob = bytearray(blobs[u])
    how = data.draw(st.sampled_from(["flip", "cut", "grow", "empty"]))
    if how == "flip":
        at = data.draw(st.integers(0, len(blob) - 1))
        blob[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del blob[data.draw(st.integers(0, len(blob) - 1)) :]
    elif how == "grow":
        blob += data.draw(st.binary(min_size=1, max_size=8))
    else:
        blob = bytearray()
    blobs[u] = bytes(blob)
    with pytest.raises(StateFormatError, match=states.users[u]):
        States.decode(states.users, blobs)


@pytest.mark.parametrize(
    ("version", "said"), [(0, "unknown version"), (VERSION + 1, "run the newer version")]
)
def test_unknown_version_is_refused(version: int, said: str) -> None:
    blob = bytearray(States.empty(["ada"]).encode()[0])
    blob[0] = version
    with pytest.raises(StateFormatError, match=said):
        States.decode(["ada"], [bytes(blob)])


def test_sizes_are_what_the_layout_says() -> None:
    states = some_states(5)
    for u, blob in enumerate(states.encode()):
        sides = 2 if states.has_tail()[u] else 1
        edged, worded = states.head["edges"][u] > 0, bool(states.head["words"][u].any())
        side = STATE.itemsize if worded else EDGED if edged else PLAIN
        assert blob[0] == (VERSION if worded else WITH_EDGES if edged else WITHOUT_EDGES)
        size = HEADER.itemsize + sides * side
        size += len(states.tail.row(u)) * (EVENT.itemsize if worded else BARE)
        size += (len(states.ids.row(u)) + len(states.ring.row(u))) * SEEN.itemsize
        assert len(blob) == size
    assert {blob[0] for blob in states.encode()} == {WITHOUT_EDGES, WITH_EDGES, VERSION}
    assert 600 <= PLAIN <= 900
    assert EDGED - PLAIN <= 72
    assert STATE.itemsize - EDGED <= 256


def told(states: States, u: int) -> dict[str, list[int]]:
    """What the golden file says of a user: integers only."""
    past = history(states.select(np.array([u])))
    return {
        "exact": [int(exact_fields(states)[u][name]) for name in EXACT.names or ()],
        "history": [int(past[name][0]) for name in sorted(past)],
        "tail": states.tail.row(u)["time_ms"].tolist(),
        "ids": states.ids.row(u)["id_lo"].tolist(),
        "ring": states.ring.row(u)["time_ms"].tolist(),
        "erased": [int(states.erased_ms[u])],
        "marks": [int(states.marks[u][name]) for name in MARKS.names or ()],
        "decayed": np.round(states.head["decayed"][u] * 1000).astype(int).reshape(-1).tolist(),
        "buckets": np.round(states.head["buckets"][u] * 1000).astype(int).reshape(-1).tolist(),
        "edges": [int(states.head[name][u]) for name in ("edges", "last_edge_ms")],
        "decayed_edges": np.round(states.head["decayed_edges"][u] * 1000).astype(int).tolist(),
        "circle": states.head["circle"][u].tolist(),
        "words": np.round(states.head["words"][u] * 1000).astype(int).tolist(),
    }


def golden(version: int) -> tuple[list[str], list[bytes], list[dict[str, list[int]]]]:
    rows = json.loads((GOLDEN / f"state-v{version}.json").read_text())
    blobs = [base64.b64decode(row["state"]) for row in rows]
    return [row["user"] for row in rows], blobs, [row["told"] for row in rows]


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_every_version_is_read_for_ever_and_rolled_forward(version: int) -> None:
    users, blobs, wanted = golden(version)
    assert len(users) >= 5
    assert {blob[0] for blob in blobs} == {version}
    states = States.decode(users, blobs)
    written = states.encode()
    # Version 1 is rolled forward; the others are still written, each of users who need it.
    assert {blob[0] for blob in written} == {max(version, WITHOUT_EDGES)}
    for read in (states, States.decode(users, written)):
        for u, told_then in enumerate(wanted):
            assert told_then.items() <= told(read, u).items()


def test_versions_may_stand_side_by_side() -> None:
    users, blobs = [], []
    for version in range(1, VERSION + 1):
        some, written, _ = golden(version)
        users += [f"{version} {user}" for user in some]
        blobs += written
    new = States.decode(users, blobs).encode()
    mixed = [blob if u % 2 else new[u] for u, blob in enumerate(blobs)]
    assert len({blob[0] for blob in mixed}) == VERSION
    assert States.decode([*users, "nobody"], [*mixed, None]).encode()[:-1] == new
    apart = np.random.default_rng(0).permutation(len(users)).tolist()
    again = States.decode([users[u] for u in apart], [mixed[u] for u in apart])
    assert again.encode() == [new[u] for u in apart]


def test_digest_does_not_depend_on_order_or_pages_and_knows_every_exact_field() -> None:
    states = some_states(6)
    rows = np.arange(len(states.users))
    whole = Digest()
    whole.add(states)
    first, second = Digest(), Digest()
    first.add(states.select(rows[::2]))
    second.add(states.select(rows[1::2][::-1]))
    second.merge(first)
    assert second == whole
    assert whole.users == int(states.known().sum())
    assert whole.applied == int(states.head["counts"].sum())
    known = int(np.argmax(states.known()))
    for name in ("id_hi", "id_lo", "orders", "refunds", "gross_micro", "refunded_micro"):
        changed = states.select(rows)
        changed.head[name][known] += 1
        other = Digest()
        other.add(changed)
        assert other.hex() != whole.hex(), name
    renamed = states.select(rows)
    renamed.users[known] = "someone else"
    other = Digest()
    other.add(renamed)
    assert other.hex() != whole.hex()


def test_erased_and_unknown_users_do_not_count_in_the_digest() -> None:
    states = some_states(7)
    whole, known = Digest(), Digest()
    whole.add(States.concat([states, States.empty(["never seen"])]))
    known.add(states.select(np.flatnonzero(states.known())))
    assert whole == known


def test_history_is_that_of_the_head() -> None:
    states = some_states(8)
    past = history(states)
    assert (past["spent_micro"] == past["gross_micro"] - past["refunded_micro"]).all()
    assert past["orders"].tolist() == states.head["orders"].tolist()
    assert set(past) == {
        *("orders", "spent_micro", "gross_micro", "refunds", "refunded_micro"),
        *("first_ms", "last_ms", "last_order_ms"),
    }
