"""Which sources of a partition are left out of its frontier.

A source is idle once it has stood at its end for a set time and its clock is none or a set time
behind the largest; the next record of it ends that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from featurestore.columns import NO_TIME
from streams.intake import Source
from streams.settings import WorkerSettings


class IdleSources:
    """Watches the sources of one partition, given in the settings' order."""

    def __init__(self, sources: Sequence[Source], worker: WorkerSettings) -> None:
        self._sources = sources
        self._after_s = worker.idle_after_s
        self._behind_ms = int(worker.idle_behind.total_seconds() * 1000)
        self.begin(())

    def begin(self, idle: Sequence[bool]) -> None:
        """Begin anew from what a watermark says, () = nothing."""
        count = len(self._sources)
        self._idle = list(idle) or [False] * count
        self._at_end_since = [time.monotonic()] * count

    def after(self, counts: Sequence[int]) -> tuple[bool, ...]:
        """Which are idle once a batch with `counts` records of each is committed."""
        now = time.monotonic()
        largest = max(s.clock for s in self._sources)
        for s, source in enumerate(self._sources):
            if counts[s]:
                self._idle[s] = False
            elif source.end <= source.position:
                rested = now - self._at_end_since[s] >= self._after_s
                far = source.clock == NO_TIME or source.clock < largest - self._behind_ms
                self._idle[s] = self._idle[s] or (rested and far)
        return tuple(self._idle)

    def committed(self, counts: Sequence[int]) -> None:
        """That batch was committed: what had records, or has more, does not stand at its end."""
        now = time.monotonic()
        for s, source in enumerate(self._sources):
            if counts[s] or source.end > source.position:
                self._at_end_since[s] = now
