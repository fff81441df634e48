"""Topics that Kafka really compacts, within seconds.

Only closed segments are compacted, and the cleaner rests 15 s between rounds unless told not to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from kafka import KafkaAdminClient  # type: ignore[import-untyped]
from kafka.admin import ConfigResource  # type: ignore[import-untyped]

SEGMENT_S = 0.1
AT_ONCE = {
    "cleanup.policy": "compact",
    "segment.ms": str(int(SEGMENT_S * 1000)),
    "min.cleanable.dirty.ratio": "0.01",
    "min.compaction.lag.ms": "0",
    "delete.retention.ms": "0",
}


def compact(admin: KafkaAdminClient, topics: Iterable[str], **more: str) -> None:
    """Let the broker compact these topics as soon as it can."""
    node = ConfigResource("BROKER", "1", {"log.cleaner.backoff.ms": "200"})
    admin.alter_configs([node, *(ConfigResource("TOPIC", t, AT_ONCE | more) for t in topics)])


def compacted(left: Callable[[], bool], patience_s: float = 30.0) -> None:
    """Wait until the cleaner has come by."""
    until = time.monotonic() + patience_s
    while not left():
        assert time.monotonic() < until, f"nothing was compacted within {patience_s} s"
        time.sleep(0.2)
