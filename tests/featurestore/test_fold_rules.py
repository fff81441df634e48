"""The rules of order, lateness, duplicates, caps and erasure, one example each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from featurestore.clock import Clocks
from featurestore.columns import LATE, NO_ID, NO_TIME, Erase, EventBatch, Outcome
from featurestore.decide import _keys
from featurestore.fold import FoldSettings, fold
from featurestore.state import States, history
from featurestore.twin import Twin
from featurestore.update import Event
from tests.featurestore.logs import (
    HOUR_MS,
    LATENESS_MS,
    START_MS,
    Folder,
    Record,
    assert_same_user,
    batch_of,
    batches,
    settings,
)

_BASE = Event(
    time_ms=START_MS,
    record_ms=START_MS,
    id_hi=1,
    id_lo=1,
    value_micro=0,
    content=7,
    action=0,
    category=0,
    kind=0,
    source=0,
    flags=0,
)
_ONE = settings(1)


def event(hour: float, identity: int, *, value: int = 0, **changes: Any) -> Event:
    """An event of source 0, `hour` hours after the start."""
    time = START_MS + int(hour * HOUR_MS)
    made = replace(_BASE, time_ms=time, record_ms=time, id_lo=identity, value_micro=value)
    return replace(made, **changes)


class Play:
    """One user's events, folded as they come."""

    def __init__(self, rules: FoldSettings = _ONE) -> None:
        self.folder = Folder(rules)
        self.offset = 0

    def say(self, *events: Event, idle: list[bool] | None = None) -> list[str]:
        """Fold these as one batch; -> names of the outcomes."""
        records = [
            Record(e.source, self.offset + i, "ada", e.record_ms, e) for i, e in enumerate(events)
        ]
        self.offset += len(events)
        outcome = self.folder.fold(batch_of(records), idle).outcome
        return [Outcome(o).name for o in outcome.tolist()]

    def erase(self, hour: float) -> list[int]:
        at = START_MS + int(hour * HOUR_MS)
        return self.folder.fold(batch_of([Record(0, 0, "ada", at, None)])).erased

    @property
    def states(self) -> States:
        return self.folder.states()

    @property
    def events(self) -> int:
        return int(self.states.head["counts"].sum())


LATE_HOURS = LATENESS_MS / HOUR_MS


def test_event_as_old_as_the_lateness_is_in_time_and_an_older_one_is_late() -> None:
    play = Play()
    edge = 100 - LATE_HOURS
    assert play.say(event(100, 1), event(edge, 2), event(edge - 0.001, 3)) == [
        "APPLIED",
        "APPLIED",
        "LATE",
    ]


def test_late_money_is_folded_at_the_edge_with_a_flag() -> None:
    play = Play()
    assert play.say(event(100, 1), event(3, 2, value=5_000_000)) == ["APPLIED", "APPLIED_LATE"]
    late = play.states.tail.values[0]
    assert late["time_ms"] == START_MS + 100 * HOUR_MS - LATENESS_MS
    assert late["flags"] & LATE
    assert history(play.states)["spent_micro"].tolist() == [5_000_000]
    assert play.states.head["late"].tolist() == [1]


def test_late_money_that_comes_again_is_a_duplicate_and_other_content_a_conflict() -> None:
    play = Play()
    late = event(3, 2, value=5_000_000)
    play.say(event(100, 1), late)
    play.say(event(200, 3))
    assert play.say(late, replace(late, content=8)) == ["DUPLICATE", "CONFLICT"]


def test_late_money_older_than_a_full_ring_is_parked() -> None:
    play = Play(settings(1, ring=2))
    play.say(*(event(hour, hour, value=1) for hour in (10, 20, 30, 40)))
    assert play.say(event(29, 99, value=1)) == ["LATE"]
    assert play.say(event(31, 98, value=1)) == ["APPLIED_LATE"]


def test_late_money_without_an_id_is_never_deduplicated() -> None:
    play = Play(settings(1, ring=1))
    play.say(event(100, 1, value=1))
    late = event(3, 2, value=1, flags=NO_ID)
    assert play.say(late, late) == ["APPLIED_LATE", "APPLIED_LATE"]


def test_redelivered_event_changes_nothing() -> None:
    play = Play()
    play.say(event(1, 1, value=5))
    before = dict(play.folder.blobs)
    assert play.say(event(1, 1, value=5), event(1, 1, value=5)) == ["DUPLICATE", "DUPLICATE"]
    assert play.folder.blobs == before


def test_other_content_under_a_known_id_is_a_conflict_and_the_first_wins() -> None:
    play = Play()
    first = event(1, 1, value=5)
    assert play.say(first, replace(first, value_micro=6, content=8)) == ["APPLIED", "CONFLICT"]
    assert play.say(replace(first, value_micro=6, content=8)) == ["CONFLICT"]
    assert history(play.states)["spent_micro"].tolist() == [5]


def test_same_id_in_another_source_is_another_event() -> None:
    play = Play(settings(2))
    assert play.say(event(1, 1), event(1, 1, source=1)) == ["APPLIED", "APPLIED"]


def test_event_without_an_id_is_never_a_duplicate() -> None:
    play = Play()
    plain = event(1, 1, flags=NO_ID)
    assert play.say(plain, plain) == ["APPLIED", "APPLIED"]
    assert play.say(plain, event(1, 1)) == ["APPLIED", "APPLIED"]


@pytest.mark.parametrize("other_ms", [NO_TIME, START_MS])
def test_identity_is_forgotten_once_older_than_the_edge_wherever_the_frontier_stands(
    other_ms: int,
) -> None:
    play = Play(settings(2))
    play.folder.clocks = Clocks(np.array([NO_TIME, other_ms]), np.array([False, False]))
    play.say(event(1, 1))
    play.say(event(50, 2))
    again = event(50, 1)
    assert play.say(again) == ["APPLIED"]
    assert play.say(again) == ["DUPLICATE"]
    # In one batch it is the same.
    batched = Play(settings(2))
    assert batched.say(event(1, 1), event(50, 2), again, again)[2:] == ["APPLIED", "DUPLICATE"]


def test_event_from_the_future_is_parked_and_moves_no_clock() -> None:
    play = Play()
    ahead = event(90, 1, record_ms=START_MS)
    assert play.say(event(0, 2), ahead, event(0, 3)) == ["APPLIED", "FUTURE", "APPLIED"]
    assert play.folder.clocks.times_ms.tolist() == [START_MS]


def test_event_within_the_skew_is_folded() -> None:
    at_limit = event(1, 1)
    at_limit = replace(at_limit, record_ms=at_limit.time_ms - _ONE.skew_ms)
    assert Play().say(at_limit, replace(at_limit, id_lo=2, record_ms=at_limit.record_ms - 1)) == [
        "APPLIED",
        "FUTURE",
    ]


def test_event_before_the_cut_is_skipped_and_moves_the_clock() -> None:
    cut = START_MS + 200 * HOUR_MS
    play = Play(settings(1, cut_ms=cut))
    assert play.say(event(100, 1), event(3, 2, value=9), event(200, 3)) == [
        "BEFORE_CUT",
        "BEFORE_CUT",
        "APPLIED",
    ]
    assert play.events == 1


def test_source_without_a_clock_holds_the_frontier_unless_it_is_idle() -> None:
    held = Play(settings(2))
    held.say(*(event(hour, hour) for hour in (1, 50, 99)), idle=[False, False])
    assert len(held.states.tail.values) == 3
    free = Play(settings(2))
    free.say(*(event(hour, hour) for hour in (1, 50, 99)), idle=[False, True])
    assert len(free.states.tail.values) == 1


def test_event_of_a_source_that_had_been_idle_is_folded_where_it_is_and_remembered() -> None:
    play = Play(settings(2))
    play.say(*(event(hour, hour, value=1) for hour in (1, 50, 99)), idle=[False, True])
    old = event(3, 77, source=1, value=1)
    assert play.say(old, idle=[False, True]) == ["APPLIED"]
    assert play.states.settled["first_ms"].tolist() == [START_MS + HOUR_MS]
    assert play.states.settled["orders"].tolist() == [3]
    assert play.say(old, idle=[False, True]) == ["DUPLICATE"]
    assert play.states.ids.values["id_lo"].tolist() == [77]


def test_tail_beyond_its_cap_is_folded_early_and_leaves_its_ids() -> None:
    play = Play(settings(1, tail=2))
    play.say(*(event(hour, int(hour * 10)) for hour in (1, 1.1, 1.2, 1.3)))
    assert play.states.tail.values["id_lo"].tolist() == [12, 13]
    assert play.states.ids.values["id_lo"].tolist() == [10, 11]
    assert play.say(event(1, 10), event(1.1, 11)) == ["DUPLICATE", "DUPLICATE"]
    # Behind the user's own edge: folded there, with its own time.
    assert play.say(event(0.5, 5)) == ["APPLIED"]
    assert play.states.settled["first_ms"].tolist() == [START_MS + HOUR_MS // 2]
    assert play.events == 5


def test_event_older_than_the_oldest_remembered_id_of_a_full_list_is_parked() -> None:
    play = Play(settings(1, tail=1, ids=2))
    play.say(*(event(hour, int(hour * 10)) for hour in (1, 1.1, 1.2, 1.3)))
    assert play.states.ids.values["id_lo"].tolist() == [11, 12]
    assert play.say(event(1, 10)) == ["LATE"]
    assert play.say(event(1.15, 99)) == ["APPLIED"]


def test_remembered_ids_are_dropped_once_their_repeats_would_be_late() -> None:
    play = Play(settings(1, tail=1))
    play.say(*(event(hour, int(hour * 10)) for hour in (1, 1.1, 1.2)))
    assert len(play.states.ids.values) == 2
    play.say(event(100, 1000))
    assert len(play.states.ids.values) == 0


def test_erased_user_starts_afresh_and_older_records_are_dropped_whenever_they_come() -> None:
    play = Play()
    play.say(event(1, 1, value=5), event(2, 2, value=7))
    assert play.erase(2) == [0]
    assert play.events == 0
    assert play.say(event(1.5, 3, value=9), event(3, 1, value=11)) == ["ERASED", "APPLIED"]
    assert history(play.states)["spent_micro"].tolist() == [11]


def test_erasure_at_the_very_moment_of_a_record_forgets_it() -> None:
    play = Play()
    play.say(event(2, 1, value=5))
    assert play.erase(2) == [0]
    assert play.events == 0
    assert len(play.states.ring.values) == 0


def test_erasure_keeps_what_was_produced_after_it() -> None:
    play = Play()
    play.say(event(1, 1, value=5), event(3, 2, value=7))
    assert play.erase(2) == []
    assert history(play.states)["spent_micro"].tolist() == [7]
    assert play.say(event(3, 2, value=7)) == ["DUPLICATE"]


def test_second_erasure_at_a_later_moment_keeps_what_settled_after_it() -> None:
    play = Play()
    play.erase(2)
    play.say(event(3, 1, value=5), event(90, 2, value=7))
    assert not len(play.erase(2.5))
    assert history(play.states)["spent_micro"].tolist() == [12]


def test_erasure_that_takes_settled_events_with_it_which_came_after_marks_the_user() -> None:
    play = Play()
    play.say(event(1, 1, value=5), event(3, 2, value=7), event(500, 3))
    assert play.states.settled["orders"].tolist() == [2]
    play.erase(2)
    assert play.states.marks["split"].tolist() == [1]
    assert history(play.states)["spent_micro"].tolist() == [0]
    plain = Play()
    plain.say(event(1, 1, value=5), event(3, 2, value=7), event(500, 3))
    plain.erase(4)
    assert plain.states.marks["split"].tolist() == [0]


def test_only_an_event_behind_a_settled_one_counts_as_overtaken() -> None:
    capped = Play(settings(1, tail=2))
    capped.say(*(event(hour, hour) for hour in (1, 2, 3, 4)))
    assert capped.states.marks[["overtaken", "capped"]].tolist() == [(0, 2)]
    capped.say(event(2.5, 98), event(1.5, 99))
    assert capped.states.marks["overtaken"].tolist() == [1]
    idle = Play(settings(2))
    idle.say(*(event(hour, hour) for hour in (1, 50, 99)), idle=[False, True])
    idle.say(event(3, 77, source=1), event(60, 78, source=1))
    assert idle.states.marks[["overtaken", "capped"]].tolist() == [(1, 0)]
    plain = Play(settings(2))
    plain.say(*(event(hour, hour) for hour in (1, 50, 99)))
    plain.say(event(3, 77, source=1), event(99, 78, source=1))
    assert plain.states.marks["overtaken"].tolist() == [0]


def test_place_of_an_erasure_among_the_events_of_a_batch_does_not_matter() -> None:
    told = [Record(0, i, "ada", e.record_ms, e) for i, e in enumerate([event(1, 1), event(3, 2)])]
    erase = Record(0, 2, "ada", START_MS + 2 * HOUR_MS, None)
    blobs = []
    for order in ([erase, *told], [told[0], erase, told[1]], [*told, erase]):
        folder = Folder(_ONE)
        folder.fold(batch_of(order))
        blobs.append(folder.blobs)
    assert blobs[0] == blobs[1] == blobs[2]


@pytest.mark.parametrize(
    ("content", "singly"),
    [(7, Outcome.DUPLICATE), (8, Outcome.CONFLICT)],
    ids=["repeat", "conflict"],
)
def test_what_says_again_before_an_erasure_what_it_forgets_counts_only_where_both_are_read_at_once(
    content: int, singly: Outcome
) -> None:
    """The gap that ADR 7 leaves open, pinned: neither answer could be given in both cases."""
    again = event(1, 1, value=9, content=content, record_ms=START_MS + 3 * HOUR_MS)
    said = [event(1, 1, value=5), again]
    log = [Record(0, i, "ada", e.record_ms, e) for i, e in enumerate(said)]
    log.append(Record(0, 2, "ada", START_MS + 2 * HOUR_MS, None))
    for size, outcome, spent in ((1, singly, 0), (3, Outcome.APPLIED, 9)):
        folder, twin = Folder(_ONE), Twin(_ONE)
        slow = [
            o for batch in batches(log, [size]) for o in (folder.fold(batch), twin.fold(batch))[1]
        ]
        assert slow[1] is outcome
        assert folder.outcomes[0, 1] == outcome
        assert history(folder.states())["spent_micro"].tolist() == [spent]
        assert_same_user(folder.states(), 0, twin.users["ada"], _ONE)


def test_erasure_of_an_unknown_user_leaves_a_marker() -> None:
    play = Play()
    assert play.erase(5) == [0]
    assert play.say(event(4, 1)) == ["ERASED"]


def test_batch_with_erasures_only_folds() -> None:
    states = States.empty(["ada"])
    nothing = EventBatch.empty()
    batch = EventBatch(
        ["ada"], nothing.user, nothing.events, nothing.offset, nothing.log_ms, [Erase(0, 0, 5)]
    )
    folded = fold(states, batch, Clocks.start(1), _ONE)
    assert folded.erased == [0]
    assert folded.states.erased_ms.tolist() == [5]


def test_input_states_stay_as_they_are() -> None:
    play = Play()
    play.say(event(1, 1, value=5), event(2, 2))
    states = play.states
    before = states.encode()
    fold(states, batch_of([Record(0, 9, "ada", 0, event(1.5, 3))]), play.folder.clocks, _ONE)
    assert states.encode() == before


def test_different_identities_with_equal_keys_are_both_folded() -> None:
    one = event(1, 5, id_hi=1)
    # The key mixes the high word by multiplication: undo it to find another identity.
    mixed = int(_keys(np.array([0]), batch_of([Record(0, 0, "ada", 0, one)]).events)[0])
    other_hi = 2
    other_lo = mixed ^ (other_hi * 0xD6E8FEB86659FD93 % 2**64)
    play = Play()
    other = event(2, other_lo, id_hi=other_hi)
    assert play.say(one, other) == ["APPLIED", "APPLIED"]
    assert play.say(other, one) == ["DUPLICATE", "DUPLICATE"]


def test_user_with_many_events_in_one_batch_folds_as_one_by_one() -> None:
    events = [event(i * 0.01, i + 1, value=i * 1000) for i in range(700)]
    at_once, singly = Play(), Play()
    at_once.say(*events)
    for start in range(0, 700, 7):
        singly.say(*events[start : start + 7])
    assert at_once.events == singly.events == 700
    assert history(at_once.states)["spent_micro"] == history(singly.states)["spent_micro"]


def test_times_far_apart_and_many_owners_sort_the_slow_way() -> None:
    play = Play()
    far = event(0, 2)
    far = replace(far, time_ms=START_MS + (1 << 43), record_ms=START_MS + (1 << 43))
    assert play.say(event(1, 1), far) == ["APPLIED", "APPLIED"]
    assert play.states.head["last_ms"].tolist() == [START_MS + (1 << 43)]
    assert play.events == 2
