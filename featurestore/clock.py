"""Event time, source clocks, allowed lateness, frontier: which events are still in order.

A source's clock is the largest event time that it has accepted. The edge of a source is its
clock minus its allowed lateness; an event before the edge that stood when it came is late. An
event more than the skew ahead of its record timestamp is from the future and moves no clock.
All of this depends on the source's own log alone, so neither batch boundaries nor the
interleaving of topics change it. The frontier is the lowest edge of the sources that are not
idle: nothing is folded before it any more.

Shapes: S sources, N events. Times are integer milliseconds, UTC; NO_TIME where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.columns import NO_TIME

Times = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Clocks:
    """Clocks of one partition's sources, in the order of the settings' topics.

    >>> Clocks.start(2).times_ms.tolist() == [NO_TIME, NO_TIME]
    True
    """

    times_ms: Times  # (S,) largest accepted event time
    idle: Bools  # (S,) left out of the frontier; set by the worker

    @classmethod
    def start(cls, sources: int) -> Clocks:
        """Clocks of a partition that was never folded."""
        return cls(np.full(sources, NO_TIME, np.int64), np.zeros(sources, bool))


def edges_ms(clock_ms: Times, lateness_ms: Times | np.int64) -> Times:
    """Clock minus allowed lateness; NO_TIME where the clock is none.

    >>> edges_ms(np.array([100, NO_TIME]), np.int64(30)).tolist() == [70, NO_TIME]
    True
    """
    # The subtraction wraps where there is no clock, and is then thrown away.
    return np.where(clock_ms == NO_TIME, NO_TIME, clock_ms - lateness_ms)


def frontier_ms(clocks: Clocks, lateness_ms: Times) -> int:
    """Time before which nothing changes any more.

    A source without a clock that is not idle may still bring anything: it holds the frontier at
    NO_TIME, as does a partition all of whose sources are idle.

    >>> clocks = Clocks(np.array([100, 50]), np.array([False, True]))
    >>> frontier_ms(clocks, np.array([30, 30]))
    70
    """
    edges = edges_ms(clocks.times_ms, lateness_ms)[~clocks.idle]
    return int(edges.min()) if len(edges) else NO_TIME


@dataclass(frozen=True, slots=True)
class Admitted:
    """What the clocks say of each event of a batch."""

    edge_ms: Times  # (N,) its source's edge when it came, before its own time counted
    late: Bools  # (N,) before that edge
    future: Bools  # (N,) beyond its record timestamp + skew, and not late
    clocks: Clocks  # afterwards


def admit(
    events: npt.NDArray[np.void], clocks: Clocks, lateness_ms: Times, skew_ms: int
) -> Admitted:
    """Run the clocks over `events` (N,), which stand in log order per source."""
    time = np.ascontiguousarray(events["time_ms"])
    source = events["source"]
    ahead = time - skew_ms > events["record_ms"]
    counted = np.where(ahead, NO_TIME, time)
    edge = np.full(len(time), NO_TIME, np.int64)
    after = clocks.times_ms.copy()
    for s in range(len(after)):
        at = np.flatnonzero(source == s)
        if not len(at):
            continue
        running = np.empty(len(at) + 1, np.int64)
        running[0] = after[s]
        running[1:] = counted[at]
        np.maximum.accumulate(running, out=running)
        edge[at] = edges_ms(running[:-1], lateness_ms[s])
        after[s] = running[-1]
    late = time < edge
    return Admitted(edge, late, ahead & ~late, Clocks(after, clocks.idle.copy()))
