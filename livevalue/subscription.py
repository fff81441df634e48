"""The `scores` topic, read-committed, as a stream of documents."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]

from streams.broker import connection, reach, translated
from streams.errors import TopicError
from streams.settings import KafkaSettings
from streams.topics import refuse_hidden

_POLL_S = 0.5


class Subscription:
    """Positioned when made; `updates` then yields what comes.

    user: only hers, from partition `number`; None = of all users.
    """

    def __init__(
        self, kafka: KafkaSettings, user: str | None, number: int | None, from_beginning: bool
    ) -> None:
        self._kafka = kafka
        self._key = None if user is None else user.encode()
        reach(kafka)
        with translated(kafka):
            self._consumer = KafkaConsumer(
                **connection(kafka),
                enable_auto_commit=False,
                isolation_level="read_committed",
                auto_offset_reset="earliest" if from_beginning else "latest",
            )
            numbers = self._consumer.partitions_for_topic(kafka.scores)
            if not numbers:
                self._consumer.close()
                refuse_hidden(kafka, kafka.scores)
                raise TopicError(
                    f"topic {kafka.scores} does not exist: run `livevalue topics --apply`, or "
                    "set LIVEVALUE_KAFKA__SCORES"
                )
            wanted = sorted(numbers) if number is None else [number]
            tps = [TopicPartition(kafka.scores, p) for p in wanted]
            self._consumer.assign(tps)
            if from_beginning:
                self._consumer.seek_to_beginning(*tps)
            else:
                self._consumer.seek_to_end(*tps)
            for tp in tps:  # seeks are lazy: this resolves them, so that nothing later is missed
                self._consumer.position(tp)

    def updates(self, idle_s: float | None) -> Iterator[dict[str, Any]]:
        """Documents in the order of each partition; closes the consumer at its end."""
        try:
            quiet_since = time.monotonic()
            while idle_s is None or time.monotonic() - quiet_since < idle_s:
                with translated(self._kafka):
                    pages = self._consumer.poll(int(_POLL_S * 1000))
                for page in pages.values():
                    for record in page:
                        if self._key is not None and record.key != self._key:
                            continue
                        quiet_since = time.monotonic()
                        if record.value is None:
                            yield {"user_id": record.key.decode(), "erased": True}
                        else:
                            yield json.loads(record.value)
        finally:
            self._consumer.close()
