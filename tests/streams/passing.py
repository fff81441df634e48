"""What a death at a named place (streams/crashpoints.py) would leave behind.

`passing` is called in the event loop, in which all of an owner runs: while it looks, nothing gets
on but the servers. So what it sees then is what a SIGKILL there would leave, and the owner goes
on. tests/e2e/test_crashes.py kills in earnest.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition  # type: ignore[import-untyped]

from streams import broker, crashpoints
from streams.emit import Published
from tests.streams.owning import Owning

_MARKED_S = 1.0  # within which a broker ends a transaction after it has said that it will


@dataclass(frozen=True)
class Left:
    """What there is, numbers counted from a moment at which everything was published."""

    seq: int = 0  # of the last commit
    outbox: tuple[int, ...] = (0,)  # commits that it names
    known: int = 0  # published, as the store knows
    published: int = 0  # of the last record of what was published, read committed
    said: int = 0  # records on `scores`, read committed
    sent: int = 0  # of those and what stands in an open transaction


class Passing:
    """The places as they are passed, what was done between them, and what a look there found.

    look: called at each place with its name, after it was noted.
    """

    def __init__(
        self, owning: Owning, patch: pytest.MonkeyPatch, look: Callable[[str], None]
    ) -> None:
        self.steps: list[str] = []
        self._owning = owning
        self._patch = patch
        self._look = look
        self._base = Left(outbox=())
        self._base = self.left()
        patch.setattr(crashpoints, "passing", self._at)

    def _at(self, here: str) -> None:
        self.steps.append(here)
        self._look(here)

    def tell(self, of: Any, name: str) -> None:
        """Note each call of a function, too, as NAME()."""
        real = getattr(of, name)

        @functools.wraps(real)
        def told(*args: Any, **options: Any) -> Any:
            self.steps.append(f"{name}()")
            return real(*args, **options)

        self._patch.setattr(of, name, told)

    def left(self) -> Left:
        """What there is now."""
        shared, base = self._owning.backing.partition(0), self._base
        fold = shared.folds.get(shared.active or "")
        mark = fold.watermark if fold else None
        known = mark.published.seq if mark and mark.published else 0
        kafka, until = self._owning.settings.kafka, time.monotonic() + _MARKED_S
        while True:
            said = self._read(kafka.scores, "read_committed")
            sent = self._read(kafka.scores, "read_uncommitted")
            if len(said) == len(sent) or time.monotonic() > until:
                break
        published = [Published.decode(r.value) for r in self._read(kafka.published)]
        return Left(
            shared.seq - base.seq,
            tuple(entry.identity.seq - base.seq for entry in shared.outbox),
            known - base.known,
            (published[-1].identity.seq if published else 0) - base.published,
            len(said) - base.said,
            len(sent) - base.sent,
        )

    def _read(self, topic: str, isolation: str = "read_committed") -> list[Any]:
        consumer = KafkaConsumer(
            **broker.connection(self._owning.settings.kafka),
            isolation_level=isolation,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        try:
            tp = TopicPartition(topic, 0)
            consumer.assign([tp])
            end, records = consumer.end_offsets([tp])[tp], []
            while consumer.position(tp) < end:
                records += consumer.poll(timeout_ms=500).get(tp, [])
            return records
        finally:
            consumer.close()

    def epoch(self) -> int:
        """Of the partition's transactional producer: who has a lower one is fenced."""
        kafka = self._owning.settings.kafka
        admin, name = KafkaAdminClient(**broker.connection(kafka)), f"{kafka.app}-0"
        try:
            return int(admin.describe_transactions([name])[name].producer_epoch)
        finally:
            admin.close()
