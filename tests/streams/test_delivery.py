"""Deliveries become one run of consecutive positions, whatever was repeated or left out."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from streams.delivery import Segment, Simple, run


def segment(before: int | None, after: int, *offsets: int) -> Segment:
    return Segment(before, after, [Simple(o) for o in offsets])


def taken(position: int, *segments: Segment) -> tuple[list[int], int, int | None]:
    done = run(position, deque(segments), 1_000)
    return [r.offset for r in done.records], done.after, done.hole


def test_each_record_delivered_twice_in_one_batch_counts_once() -> None:
    assert taken(5, segment(None, 7, 5, 5, 6, 6)) == ([5, 6], 7, None)
    assert taken(5, segment(5, 7, 5, 5, 6, 6)) == ([5, 6], 7, None)
    assert taken(5, segment(5, 7, 5, 6), segment(5, 7, 5, 6)) == ([5, 6], 7, None)


def test_a_hole_in_an_unvouched_delivery_is_cut_at_and_named() -> None:
    assert taken(5, segment(None, 10, 5, 6, 9)) == ([5, 6], 7, 9)
    assert taken(5, segment(None, 12, 9, 11)) == ([], 5, 9)


def test_offsets_that_markers_took_are_no_hole_where_the_fetch_vouches_for_them() -> None:
    assert taken(5, segment(5, 12, 5, 6, 9)) == ([5, 6, 9], 12, None)
    assert taken(5, segment(5, 9)) == ([], 9, None)


def test_a_hole_between_two_deliveries_is_named_and_the_later_one_is_kept() -> None:
    waiting = deque([segment(5, 7, 5, 6), segment(9, 11, 9, 10)])
    done = run(5, waiting, 1_000)
    assert ([r.offset for r in done.records], done.after, done.hole) == ([5, 6], 7, 9)
    assert len(waiting) == 1
    done = run(9, waiting, 1_000)
    assert ([r.offset for r in done.records], done.after, done.hole) == ([9, 10], 11, None)


def test_what_lies_before_the_watermark_is_dropped() -> None:
    assert taken(8, segment(0, 6, 1, 2, 5), segment(6, 10, 6, 7, 8, 9)) == ([8, 9], 10, None)


def test_at_most_about_what_was_asked_for_is_taken_at_once() -> None:
    waiting = deque([segment(0, 3, 0, 1, 2), segment(3, 6, 3, 4, 5)])
    assert len(run(0, waiting, 2).records) == 3
    assert len(waiting) == 1


LOG = [o for o in range(60) if o % 7 != 3]  # every seventh offset is a marker


@st.composite
def deliveries(draw: st.DrawFn) -> list[Segment]:
    """Pieces of the log in any order, some vouched for, some with repeats or gaps inside."""
    pieces = []
    for _ in range(draw(st.integers(1, 12))):
        low = draw(st.integers(0, 55))
        high = draw(st.integers(low + 1, 60))
        offsets = [o for o in LOG if low <= o < high]
        if draw(st.booleans()):
            pieces.append(segment(low, high, *offsets))
        elif offsets:
            kept = draw(st.lists(st.sampled_from(offsets), min_size=1))
            pieces.append(segment(None, kept[-1] + 1, *kept))
    return pieces


@given(deliveries())
def test_with_holes_read_from_the_log_every_record_comes_once_and_in_order(
    pieces: list[Segment],
) -> None:
    waiting, position, got = deque(pieces), 0, []
    while True:
        done = run(position, waiting, 5)
        got += [r.offset for r in done.records]
        position = done.after
        if done.hole is not None:  # the caller reads the log itself
            got += [o for o in LOG if position <= o < done.hole]
            position = done.hole
        elif not waiting:
            break
    assert got == [o for o in LOG if o < position]
