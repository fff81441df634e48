"""What was read lately, and of which leader: as short as may be, and kept by a watermark."""

from __future__ import annotations

import pytest

from streams import trail
from streams.delivery import Simple
from streams.logid import offset_of
from streams.trail import UNKNOWN, Trail


class Clock:
    """The time that a trail sees."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(trail, "time", made)
    return made


def read(made: Trail, clock: Clock, *offsets: int, each_s: float = 1.0) -> None:
    for offset in offsets:
        made.saw([Simple(offset - 1), Simple(offset)])
        clock.now += each_s


def offsets(text: str) -> list[int]:
    return [offset_of(mark) for mark in text.split(" ")[1:]]


def test_it_holds_the_last_record_of_each_delivery_since_the_last_look_and_one_before(
    clock: Clock,
) -> None:
    made = Trail()
    made.saw([])
    read(made, clock, 10, 20, 30, 40)
    assert offsets(made.text(1000)) == [10, 20, 30, 40]
    assert offsets(made.text(40)) == [10, 20, 30]  # 40 is read and not folded
    made.led(3, clock.now)
    # What a broker names may be the leader of two seconds ago.
    assert (made.epoch, offsets(made.text(1000))) == (3, [20, 30, 40])
    clock.now += 60
    made.led(3, clock.now)
    assert offsets(made.text(1000)) == [40]
    assert made.text(1000).startswith("3 ")


def test_many_deliveries_at_once_are_one_mark_and_what_is_read_again_hides_none(
    clock: Clock,
) -> None:
    made = Trail()
    read(made, clock, 10)
    read(made, clock, 20, 30, 99, 50, 40, each_s=0.01)
    clock.now += 1
    read(made, clock, 110)
    assert offsets(made.text(1000)) == [10, 20, 99, 110]


def test_a_look_of_before_is_no_news_and_another_leader_is(clock: Clock) -> None:
    made = Trail()
    made.led(3, 50.0)
    assert made.still(3, 51.0) and made.epoch == 3
    assert made.still(2, 51.0) and made.epoch == 3  # asked before: it was another one then
    assert not made.still(4, 52.0)
    assert made.epoch == 3  # until a claim has looked at what it has


def test_a_watermark_keeps_it_for_who_comes_next(clock: Clock) -> None:
    before, after = Trail(), Trail()
    read(before, clock, 10, 20, 30)
    before.led(3, clock.now)
    after.recall("")
    assert after.epoch == UNKNOWN and after.beyond(0) == []
    after.recall(before.text(25))
    assert after.epoch == 3
    assert [offset_of(m) for m in after.beyond(15)] == [20]
    # Told twice it is known once; of two leaders it goes by the first.
    after.led(5, clock.now)
    after.recall(before.text(25))
    assert [offset_of(m) for m in after.beyond(0)] == [10, 20]
    assert after.epoch == 3
    # What was kept is kept on until a look vouches for it.
    assert offsets(after.text(1000)) == [10, 20]


def test_without_end_it_forgets_the_oldest(clock: Clock) -> None:
    made = Trail()
    read(made, clock, *range(1, 2 * trail._MOST))
    assert len(made.beyond(0)) == trail._MOST
    assert offset_of(made.beyond(0)[-1]) == 2 * trail._MOST - 1
    # What another process left behind does not take the place of what we have read.
    before = Trail()
    read(before, clock, 1, 2, 3)
    kept = made.beyond(0)
    made.recall(before.text(9))
    assert made.beyond(0) == kept
