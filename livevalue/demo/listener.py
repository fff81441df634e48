"""Listens to the `scores` topic of the demo in a thread, read-committed, from its beginning."""

from __future__ import annotations

import json
import queue
import threading
from typing import Any

from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]

from streams.broker import connection
from streams.settings import KafkaSettings


class Listener:
    """Documents as they are published; `take()` gives those that came since the last call."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._stopped = threading.Event()
        self._documents: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)
        self.error: Exception | None = None

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        self._stopped.set()
        self._thread.join(5)

    def take(self) -> list[dict[str, Any]]:
        """Everything that came since the last call."""
        taken = []
        while not self._documents.empty():
            taken.append(self._documents.get_nowait())
        return taken

    def _run(self) -> None:
        try:
            consumer = KafkaConsumer(
                **connection(self._kafka),
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                isolation_level="read_committed",
            )
            consumer.assign(
                [TopicPartition(self._kafka.scores, p) for p in range(self._kafka.partitions)]
            )
            while not self._stopped.is_set():
                for records in consumer.poll(200).values():
                    for record in records:
                        if record.value is not None:
                            self._documents.put(json.loads(record.value))
            consumer.close()
        except Exception as error:  # noqa: BLE001  shown by the screen, which owns the terminal
            self.error = error
