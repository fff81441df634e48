"""What the owners of one worker's partitions share: settings, clients, clocks, and how to pause.

A worker makes one of these and gives it to each owner; tests make one around a store in memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from streams.codec import Codec
from streams.metrics import Metrics
from streams.pipeline import Pipeline
from streams.publish import Breath, Pacer
from streams.settings import Settings
from streams.succession import Succession
from streams.topics import Logs


@dataclass(slots=True)
class Surroundings:
    """What the owners of one worker share."""

    settings: Settings
    codec: Codec
    metrics: Metrics
    pacer: Pacer
    breath: Breath
    pipeline_for: Callable[[int], Awaitable[Pipeline]]  # into the partition's active store
    logs: Callable[[], Awaitable[Logs]]  # as the broker has them now
    now_ms: Callable[[], int]
    succession_for: Callable[[int], Succession] | None = None  # takes announced stores over
    pause: Callable[[int, int], None] = lambda partition, source: None
    resume: Callable[[int, int], None] = lambda partition, source: None
