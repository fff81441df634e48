"""Clocks depend on their own source's log alone; the frontier is the lowest edge."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from featurestore.clock import Clocks, admit, frontier_ms
from featurestore.columns import EVENT, NO_TIME

LATENESS = np.array([10, 30], np.int64)
SKEW = 5
ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 100), st.integers(0, 100)))


def events(rows: list[tuple[int, int, int]]) -> np.ndarray:
    made = np.zeros(len(rows), EVENT)
    for i, (source, time, record) in enumerate(rows):
        made[i]["source"], made[i]["time_ms"], made[i]["record_ms"] = source, time, record
    return made


@example([(0, 50, 50), (0, 40, 40)])  # at the edge: not late
@example([(0, 50, 50), (0, 39, 39)])
@example([(0, 50, 45)])  # at the skew: not from the future
@example([(0, 50, 44)])
@given(ROWS)
def test_admission_equals_the_rules_event_by_event(rows: list[tuple[int, int, int]]) -> None:
    got = admit(events(rows), Clocks.start(2), LATENESS, SKEW)
    clocks: list[int | None] = [None, None]
    for i, (source, time, record) in enumerate(rows):
        clock = clocks[source]
        edge = None if clock is None else clock - int(LATENESS[source])
        late = edge is not None and time < edge
        ahead = time > record + SKEW
        assert bool(got.late[i]) == late
        assert bool(got.future[i]) == (ahead and not late)
        assert int(got.edge_ms[i]) == (NO_TIME if edge is None else edge)
        if not ahead:
            clocks[source] = time if clock is None else max(clock, time)
    assert got.clocks.times_ms.tolist() == [NO_TIME if c is None else c for c in clocks]


@given(ROWS, st.integers(0, 20))
def test_batches_of_a_log_admit_as_the_whole(rows: list[tuple[int, int, int]], cut: int) -> None:
    whole = admit(events(rows), Clocks.start(2), LATENESS, SKEW)
    first = admit(events(rows[:cut]), Clocks.start(2), LATENESS, SKEW)
    second = admit(events(rows[cut:]), first.clocks, LATENESS, SKEW)
    assert np.concatenate([first.late, second.late]).tolist() == whole.late.tolist()
    assert np.concatenate([first.future, second.future]).tolist() == whole.future.tolist()
    assert second.clocks.times_ms.tolist() == whole.clocks.times_ms.tolist()


@given(ROWS)
def test_one_source_read_ahead_of_another_makes_nothing_late(
    rows: list[tuple[int, int, int]],
) -> None:
    mixed = admit(events(rows), Clocks.start(2), LATENESS, SKEW)
    ahead = sorted(range(len(rows)), key=lambda i: rows[i][0])
    sorted_ = admit(events([rows[i] for i in ahead]), Clocks.start(2), LATENESS, SKEW)
    assert sorted_.late.tolist() == mixed.late[ahead].tolist()


def test_frontier_is_held_by_the_slowest_source_that_is_not_idle() -> None:
    times = np.array([100, 50], np.int64)
    assert frontier_ms(Clocks(times, np.array([False, False])), LATENESS) == 20
    assert frontier_ms(Clocks(times, np.array([False, True])), LATENESS) == 90


def test_source_that_never_had_a_record_holds_everything_unless_idle() -> None:
    times = np.array([100, NO_TIME], np.int64)
    assert frontier_ms(Clocks(times, np.array([False, False])), LATENESS) == NO_TIME
    assert frontier_ms(Clocks(times, np.array([False, True])), LATENESS) == 90


def test_partition_of_idle_sources_holds_everything() -> None:
    assert frontier_ms(Clocks(np.array([1, 2]), np.array([True, True])), LATENESS) == NO_TIME
