"""The fast fold against its slow twin and against itself, on random logs."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featurestore.columns import NO_TIME, Outcome
from featurestore.digest import Digest, exact_fields
from featurestore.state import States
from featurestore.twin import Twin, User
from tests.featurestore.logs import (
    Folder,
    Log,
    Record,
    assert_same_tokens,
    assert_same_user,
    batches,
    in_time,
    interleaved,
    logs,
    play,
    settings,
)

SIZES = st.sampled_from([[1], [3], [17], [1000], [1, 7, 2, 30]])


def both(
    log: Log, order: list[Record], sizes: list[int], idles: list[list[bool]], **caps: int
) -> None:
    """Play a log through the fold and the twin with the same batches, and compare everything."""
    rules = settings(len(log), **caps)
    folder, twin = Folder(rules), Twin(rules)
    for turn, batch in enumerate(batches(order, sizes)):
        idle = idles[turn % len(idles)][: len(log)]
        folded = folder.fold(batch, idle)
        slow = twin.fold(batch, idle)
        assert [Outcome(o).name for o in folded.outcome.tolist()] == [o.name for o in slow]
    states = folder.states()
    assert set(states.users) == {n for n, u in twin.users.items() if _known(u)}
    for u, name in enumerate(states.users):
        assert_same_user(states, u, twin.users[name], rules)
        assert_same_tokens(folder.carries.get(name, []), twin.users[name].head(rules).events)


def _known(user: User) -> bool:
    return user != User()


@given(st.data())
def test_fold_equals_its_twin(data: st.DataObject) -> None:
    log = data.draw(logs(data.draw(st.integers(1, 3))))
    order = interleaved(log, random.Random(data.draw(st.integers(0, 99))))
    both(log, order, data.draw(SIZES), [[False] * 3])


@given(st.data())
def test_fold_equals_its_twin_with_small_caps_and_idle_sources(data: st.DataObject) -> None:
    log = data.draw(logs(data.draw(st.integers(1, 3)), size=60))
    order = interleaved(log, random.Random(data.draw(st.integers(0, 99))))
    idles = data.draw(
        st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4)
    )
    both(log, order, data.draw(SIZES), idles, tail=3, ids=5, ring=2)


@given(st.data())
def test_batch_boundaries_change_no_bit(data: st.DataObject) -> None:
    log = data.draw(logs(data.draw(st.integers(1, 3)), size=60))
    order = interleaved(log, random.Random(data.draw(st.integers(0, 99))))
    rules = settings(len(log))
    one = play(order, [1], rules)
    for sizes in ([3], [17], [1000], [2, 11]):
        other = play(order, sizes, rules)
        assert lasting(one, order) == lasting(other, order)
        assert one.carries == other.carries
        _assert_equal_heads(one.states(), other.states())


@given(st.data())
def test_interleaving_of_sources_changes_no_bit(data: st.DataObject) -> None:
    log = data.draw(logs(3, size=60))
    rules = settings(3)
    first = play(in_time(log), [1000], rules)
    for seed in range(3):
        other = play(interleaved(log, random.Random(seed)), data.draw(SIZES), rules)
        assert lasting(first, in_time(log)) == lasting(other, in_time(log))
        assert first.carries == other.carries
        _assert_equal_heads(first.states(), other.states())


@given(st.data())
def test_caps_and_idle_sources_leave_identities_counts_money_and_decayed_sums_equal(
    data: st.DataObject,
) -> None:
    # An event made after an erasure that stands before it may be settled then (ADR 7).
    log = data.draw(logs(3, size=60, ahead=False))
    rules, capped = settings(3), settings(3, tail=2)
    usual = play(in_time(log), [1000], rules)
    idles = data.draw(
        st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4)
    )
    order = interleaved(log, random.Random(data.draw(st.integers(0, 99))))
    folder = Folder(capped)
    for turn, batch in enumerate(batches(order, data.draw(SIZES))):
        folder.fold(batch, idles[turn % len(idles)])
    assert lasting(usual, order) == lasting(folder, order)
    one, other = usual.states(), folder.states()
    assert exact_fields(one).tobytes() == exact_fields(other).tobytes()
    for name in REMAINS:
        assert one.head[name].tolist() == other.head[name].tolist(), name
    # Sums of orders and refunds cancel: what is left may be far smaller than what was added.
    limit = 1e-9 * (1 + (one.head["gross_micro"] + one.head["refunded_micro"]) / 1e6)
    off = np.abs(one.head["decayed"] - other.head["decayed"])
    assert (off <= limit[:, None, None] + 1e-9 * np.abs(one.head["decayed"])).all()
    np.testing.assert_allclose(one.head["decayed_edges"], other.head["decayed_edges"], rtol=1e-9)
    np.testing.assert_allclose(one.head["mix"], other.head["mix"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one.head["words"], other.head["words"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one.head["buckets"], other.head["buckets"], rtol=1e-5, atol=1e-3)


REMAINS = (
    *("first_ms", "last_ms", "last_type_ms", "first_order_ms", "last_order_ms", "last_refund_ms"),
    *("last_step_ms", "first_record_ms", "late", "edges", "last_edge_ms", "circle"),
)


def lasting(folder: Folder, records: list[Record]) -> dict[tuple[int, int], str]:
    """Outcomes of what no erasure made forgotten; before it came, the others may be anything."""
    states = folder.states()
    marker = dict(zip(states.users, states.erased_ms.tolist(), strict=True))
    return {
        (r.source, r.offset): Outcome(folder.outcomes[r.source, r.offset]).name
        for r in records
        if r.event is not None and r.record_ms > marker.get(r.user, NO_TIME)
    }


def _assert_equal_heads(one: States, other: States) -> None:
    """Heads, rings and markers to the bit; the frontier may have passed users at other times."""
    assert one.users == other.users
    for u, user in enumerate(one.users):
        assert one.head[u].tobytes() == other.head[u].tobytes(), user
        assert one.ring.row(u).tobytes() == other.ring.row(u).tobytes()
    assert one.erased_ms.tolist() == other.erased_ms.tolist()
    digests = [Digest(), Digest()]
    digests[0].add(one)
    digests[1].add(other.select(np.arange(len(other.users))[::-1]))
    assert digests[0].hex() == digests[1].hex()
