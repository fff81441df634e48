"""Rows of different length, flat, against lists of lists."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featurestore.columns import EVENT
from featurestore.remember import latest
from featurestore.rows import Rows, merge_order, starts_of
from featurestore.state import SEEN

LISTS = st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=6)


def rows(lists: list[list[int]]) -> Rows:
    values = np.zeros(sum(map(len, lists)), EVENT)
    values["time_ms"] = [x for row in lists for x in row]
    return Rows(values, starts_of(np.array([len(row) for row in lists])))


def lists(of: Rows) -> list[list[int]]:
    return [of.row(u)["time_ms"].tolist() for u in range(len(of.starts) - 1)]


@given(LISTS, st.data())
def test_taken_rows_are_those_rows(told: list[list[int]], data: st.DataObject) -> None:
    at = data.draw(st.lists(st.integers(0, len(told) - 1), max_size=8))
    assert lists(rows(told).take(np.array(at, np.intp))) == [told[i] for i in at]


@given(LISTS)
def test_kept_values_stay_in_their_rows(told: list[list[int]]) -> None:
    of = rows(told)
    assert lists(of.keep(of.values["time_ms"] > 4)) == [[x for x in row if x > 4] for row in told]


@given(LISTS, st.data())
def test_replaced_rows_are_the_new_ones(told: list[list[int]], data: st.DataObject) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, len(told) - 1))))
    new = [data.draw(st.lists(st.integers(10, 19), max_size=3)) for _ in chosen]
    if not chosen:
        return
    got = lists(rows(told).replace(np.array(chosen, np.intp), rows(new)))
    assert got == [new[chosen.index(i)] if i in chosen else row for i, row in enumerate(told)]


def test_joined_rows_come_one_after_the_other() -> None:
    assert lists(Rows.concat([rows([[1], []]), rows([[2, 3]])])) == [[1], [], [2, 3]]
    assert rows([[1], [], [2, 3]]).owner.tolist() == [0, 2, 2]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), max_size=40),
    st.sampled_from([1, 1 << 41, 1 << 50]),
)
def test_merge_order_is_that_of_a_sort(told: list[tuple[int, int, int]], far: int) -> None:
    records = np.zeros(len(told), EVENT)
    owner = np.array([t[0] for t in told], np.intp)
    time = np.array([t[1] * far for t in told], np.int64)
    records["kind"] = [t[2] for t in told]
    got = merge_order(owner, time, ("kind",), records)
    assert got.tolist() == sorted(range(len(told)), key=lambda i: told[i])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 20)), max_size=30))
def test_latest_keeps_the_newest_per_row_and_source(told: list[tuple[int, int, int]]) -> None:
    more = np.zeros(len(told), SEEN)
    more["source"] = [t[1] for t in told]
    more["time_ms"] = [t[2] for t in told]
    owner = np.array([t[0] for t in told], np.intp)
    got = latest(Rows.empty(3, SEEN), owner, more, 2)
    for u in range(3):
        for source in range(2):
            newest = sorted(t[2] for t in told if t[:2] == (u, source))[-2:]
            row = got.row(u)
            assert row["time_ms"][row["source"] == source].tolist() == newest
