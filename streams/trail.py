"""What was read of a source lately, and of which leader: a cut shows though the log was written on.

A log can lose its newest records and be written on at once beyond where it had been: a reader goes
on where it stood, and what came in the place of the lost is never read. Each leader of a partition
has a number, its epoch, and its successor says where it ended (streams/leaders.py). What we read
beyond that end before we knew of a successor may be gone, so it is looked up again. The watermark
keeps the trail, since a worker may die before it hears of another leader.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Container, Mapping, Sequence

from aiokafka import TopicPartition  # type: ignore[import-untyped]

from streams.delivery import RawRecord
from streams.gap import Bounds, LogReader
from streams.logid import gone, offset_of, record_mark

UNKNOWN = -1
_EACH_S = 0.1  # a mark for so long at least; no other leader takes over that fast
_TOLD_S = 2.0  # a broker may name the leader of a while ago
_MOST = 512  # marks; we look for other leaders every few seconds


class Trail:
    """Marks of the records that were read of a source, the last of each delivery.

    Reaches back to when the broker last named the leader, and one mark further.
    """

    def __init__(self) -> None:
        self.epoch = UNKNOWN  # of the leader whose records these are, as far as we were told
        self._asked_s = float("-inf")
        self._marks: deque[tuple[float, str]] = deque(maxlen=_MOST)

    def saw(self, records: Sequence[RawRecord]) -> None:
        """Take in one delivery."""
        if not records:
            return
        now, mark = time.monotonic(), record_mark(records[-1])
        if len(self._marks) > 1 and now - self._marks[-2][0] < _EACH_S:
            _, last = self._marks.pop()
            mark = max(last, mark, key=offset_of)  # what is read again must not hide it
        self._marks.append((now, mark))

    def led(self, epoch: int, asked_s: float) -> None:
        """The broker, asked at `asked_s` (monotonic), named the leader of `epoch`: all is well."""
        if asked_s <= self._asked_s:
            return
        self.epoch, self._asked_s = epoch, asked_s
        while len(self._marks) > 1 and self._marks[1][0] < asked_s - _TOLD_S:
            self._marks.popleft()

    def still(self, epoch: int, asked_s: float) -> bool:
        """Take in a look at the leader; False where it is another one than we know of."""
        if asked_s > self._asked_s and epoch != self.epoch:
            return False
        self.led(epoch, asked_s)
        return True

    def text(self, below: int) -> str:
        """For a watermark at position `below`: the epoch, and marks of what was folded."""
        marks = [mark for _, mark in self._marks if offset_of(mark) < below]
        return " ".join([str(self.epoch), *marks])

    def recall(self, text: str) -> None:
        """Take in what a watermark has kept, of whoever was here before."""
        if not text:
            return
        epoch, *marks = text.split(" ")
        known = {mark for _, mark in self._marks}
        before = [(time.monotonic(), mark) for mark in marks if mark not in known]
        self._marks = deque([*before, *self._marks], maxlen=_MOST)  # the newest stay
        # Whatever was read of two leaders is looked up from the end of the first.
        self.epoch = min((e for e in (self.epoch, int(epoch)) if e != UNKNOWN), default=UNKNOWN)

    def beyond(self, offset: int) -> list[str]:
        """The marks at or beyond `offset`, in the log's order."""
        marks = {mark for _, mark in self._marks if offset_of(mark) >= offset}
        return sorted(marks, key=offset_of)


async def cuts(
    reader: LogReader,
    tps: Sequence[TopicPartition],
    trails: Sequence[Trail],
    ended: Mapping[int, int | None],
    bounds: Sequence[Bounds],
    compacted: Container[str] = (),
) -> dict[int, int]:
    """By source, where the log was cut below what was read of it.

    ended: of each source with another leader, where the log of the one before ends as its
    successor says; None where it does not know, then all of the trail is looked up.
    compacted: topics that may lack records for another reason.
    """
    found = {}
    for source, end in ended.items():
        tp, marks = tps[source], trails[source].beyond(end or 0)
        lost = await gone(reader, tp, marks, bounds[source], compacted=tp.topic in compacted)
        if lost:
            kept = [offset_of(m) + 1 for m in marks[: marks.index(lost[0])]]
            found[source] = end if end is not None else max(kept, default=bounds[source].start)
    return found
