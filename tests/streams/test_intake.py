"""What is taken next: lowest clock first, by positions, and again until it is committed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta

from featurestore.columns import NO_TIME
from streams.codec import Codec
from streams.delivery import Segment, Simple
from streams.intake import Intake, Taken
from streams.settings import KafkaSettings, Settings, WorkerSettings

T0 = 1_700_000_000_000
HOUR_MS = 3_600_000


def make(batch: int = 100, ahead: timedelta = timedelta(hours=1)) -> Intake:
    settings = Settings(
        kafka=KafkaSettings(partitions=1), worker=WorkerSettings(batch=batch, pause_ahead=ahead)
    )
    intake = Intake(Codec(settings), 0, settings)
    intake.reset((0, 0, 0), (NO_TIME,) * 3, ("", "", ""))
    return intake


def record(offset: int, time_ms: int, kind: str, user: str = "ada") -> Simple:
    event = {"event_id": f"{kind}{offset}", "user_id": user, "event_time": time_ms}
    event |= {"purchase": {"amount": "1"}, "interaction": {"action": "like"}}.get(kind, {})
    return Simple(offset, user.encode(), json.dumps(event).encode(), time_ms)


KINDS = ("browse", "purchase", "interaction")


def deliver(intake: Intake, source: int, times: Sequence[int], *, end: int = -1) -> Segment:
    """Records at offsets 0.. of a source with these times; `end` is what the log holds."""
    records = [record(n, t, KINDS[source]) for n, t in enumerate(times)]
    segment = Segment(0, len(records), records, max(end, len(records)))
    intake.deliver(source, segment)
    assert intake.fill() == []
    return segment


def offsets(taken: Taken | None) -> dict[int, list[int]]:
    assert taken is not None
    return {s: [r.offset for r in records] for s, records in taken.raw.items()}


def test_records_are_taken_lowest_clock_first_over_all_sources() -> None:
    intake = make()
    deliver(intake, 0, [T0, T0 + 4000, T0 + 8000])
    deliver(intake, 1, [T0 + 1000, T0 + 2000])
    deliver(intake, 2, [T0 + 5000])
    taken = intake.take(3)
    assert offsets(taken) == {0: [0], 1: [0, 1]}
    assert taken is not None and taken.positions == (1, 2, 0)
    assert taken.batch.size == 3 and taken.batch.users == ["ada"]


def test_a_source_waits_for_one_with_unread_records_and_an_older_clock() -> None:
    intake = make()
    deliver(intake, 0, [T0, T0 + HOUR_MS, T0 + 3 * HOUR_MS])
    deliver(intake, 1, [T0 + 1000], end=50)  # 49 more are in the log, not delivered yet
    taken = intake.take(100)
    assert offsets(taken) == {0: [0, 1], 1: [0]}
    assert taken is not None
    intake.commit(taken, (T0 + HOUR_MS, T0 + 1000, NO_TIME))
    assert intake.take(100) is None
    assert [(h.source, h.low, h.high) for h in intake.waiting_for()] == [(1, 1, 50)]
    intake.insert(1, [record(1, T0 + 4 * HOUR_MS, "purchase")], 50)
    assert offsets(intake.take(100)) == {0: [2], 1: [1]}


def test_an_unread_source_of_unknown_clock_holds_everybody_back() -> None:
    intake = make()
    intake.sources[2].end = 10
    deliver(intake, 0, [T0])
    assert intake.take(100) is None
    assert [h.source for h in intake.waiting_for()] == [2]


def test_a_source_with_a_batch_at_hand_is_not_read_further_but_those_are_for_which_it_waits() -> (
    None
):
    intake = make(batch=2)
    deliver(intake, 0, [T0, T0], end=9)
    intake.sources[1].end = 9
    assert intake.take(2) is None
    assert [h.source for h in intake.waiting_for()] == [1]
    intake.insert(1, [record(0, T0, "purchase")], 1)
    assert [h.source for h in intake.waiting_for()] == [1]
    taken = intake.take(2)
    assert taken is not None and taken.positions == (2, 0, 0)
    intake.commit(taken, (T0, NO_TIME, NO_TIME))
    assert [h.source for h in intake.waiting_for()] == [0, 1]


def test_what_was_taken_is_given_again_until_it_is_committed() -> None:
    intake = make()
    segment = deliver(intake, 0, [T0, T0 + 1, T0 + 2])
    first, again = intake.take(2), intake.take(2)
    assert offsets(first) == offsets(again) == {0: [0, 1]}
    assert first is not None
    intake.commit(first, (T0 + 1, NO_TIME, NO_TIME))
    was_acked = segment.acked
    assert not was_acked
    rest = intake.take(2)
    assert offsets(rest) == {0: [2]}
    assert rest is not None and rest.marks[0].startswith("2:")
    intake.commit(rest, (T0 + 2, NO_TIME, NO_TIME))
    assert segment.acked
    assert intake.take(2) is None


def test_after_a_new_claim_the_hole_before_what_was_delivered_is_named() -> None:
    intake = make()
    deliver(intake, 0, [T0, T0 + 1])
    later = [record(n, T0 + n, "browse") for n in (2, 3)]
    intake.deliver(0, Segment(2, 4, later))
    intake.reset((0, 0, 0), (NO_TIME,) * 3, ("", "", ""))
    (hole,) = intake.fill()
    assert (hole.source, hole.low, hole.high) == (0, 0, 2)


def test_positions_over_markers_alone_are_taken_as_an_empty_batch() -> None:
    intake = make()
    intake.deliver(1, Segment(0, 3, [], 3))
    intake.fill()
    taken = intake.take(10)
    assert taken is not None
    assert (taken.positions, taken.records, taken.batch.size) == ((0, 3, 0), 0, 0)


def test_a_cut_through_a_chunk_keeps_erases_and_rejects_on_their_side() -> None:
    intake = make()
    erase = Simple(1, b"ada", None, T0 + 1)
    broken = Simple(3, b"ada", b"{", T0 + 3)
    records = [
        record(0, T0, "browse", "ada"),
        erase,
        record(2, T0 + 2, "browse", "bob"),
        broken,
        record(4, T0 + 4, "browse", "ada"),
    ]
    intake.deliver(0, Segment(0, 5, records, 5))
    intake.fill()
    first = intake.take(2)
    assert first is not None
    assert (first.batch.size, len(first.batch.erases), first.rejected) == (1, 1, [])
    assert first.batch.users[first.batch.erases[0].user] == "ada"
    intake.commit(first, (T0, NO_TIME, NO_TIME))
    second = intake.take(2)
    assert second is not None
    assert second.batch.users == ["bob"] and second.batch.erases == []
    assert [r.offset for r in second.rejected] == [3] and second.positions[0] == 4
    intake.commit(second, (T0 + 2, NO_TIME, NO_TIME))
    third = intake.take(2)
    assert third is not None
    assert third.batch.users == ["ada"] and third.batch.offset.tolist() == [4]


def test_a_far_future_time_does_not_put_a_source_ahead_of_the_others() -> None:
    intake = make()
    odd = Simple(0, b"ada", record(0, T0 + 10**10, "browse").value, T0)
    intake.deliver(0, Segment(0, 2, [odd, record(1, T0 + 5, "browse")], 2))
    deliver(intake, 1, [T0 + 1, T0 + 2])
    assert offsets(intake.take(3)) == {0: [0], 1: [0, 1]}


def test_after_a_roll_back_a_delivery_that_was_acknowledged_is_a_hole_and_not_an_empty_one() -> (
    None
):
    intake = make()
    records = [record(n, T0 + n, "browse") for n in range(100)]
    for _ in range(2):  # a rebalance, or our own read and then the fetch
        intake.deliver(0, Segment(0, 100, list(records), 100))
    assert intake.fill() == []
    taken = intake.take(100)
    assert taken is not None and taken.positions == (100, 0, 0)
    intake.commit(taken, (T0 + 99, NO_TIME, NO_TIME))
    intake.reset((50, 0, 0), (T0 + 49, NO_TIME, NO_TIME), ("", "", ""))
    intake.fill()
    again = intake.take(100)
    if again is not None:  # what is still held whole may be taken from it
        assert offsets(again)[0] == list(range(50, 100))
    else:
        assert [(hole.low, hole.high) for hole in intake.waiting_for()] == [(50, 100)]
