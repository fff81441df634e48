"""Plays the orders into the topics at a steady number of days a second.

The log's clock, not the wall's, is the demo's time: an event's `event_time` is when the order
really happened, and readers take the log's clock as now.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from kafka import KafkaProducer  # type: ignore[import-untyped]

from featurestore.partitioner import partition
from livevalue.demo.orders import DAY_MS, Orders, Played, simulate
from streams.broker import connection
from streams.settings import KafkaSettings

_TICK_S = 0.1


class Player:
    """A thread that sends what happened between two moments of the log."""

    def __init__(
        self,
        kafka: KafkaSettings,
        orders: Orders,
        start_ms: int,
        end_ms: int,
        seconds: float,
        simulated: bool,
    ) -> None:
        self._kafka = kafka
        self._orders = orders
        self._start_ms = start_ms
        self._end_ms = end_ms
        self._seconds = seconds
        self._simulated = simulated
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="player", daemon=True)
        self.clock_ms = start_ms  # everything before this has been sent
        self.sent = 0
        self.simulated = 0
        self.first_sent_at: float | None = None  # time.monotonic of the first event
        self.error: Exception | None = None

    def start(self) -> None:
        """Begin to play."""
        self._thread.start()

    def stop(self) -> None:
        """Stop playing; what was sent is flushed."""
        self._stopped.set()
        self._thread.join(10)

    @property
    def finished(self) -> bool:
        """Whether everything is sent, or the player failed."""
        return not self._thread.is_alive() and self._thread.ident is not None

    def _run(self) -> None:
        try:
            producer = KafkaProducer(**connection(self._kafka), linger_ms=5, acks="all")
            try:
                self._play(producer)
            finally:
                producer.flush(10)
                producer.close(10)
        except Exception as error:  # noqa: BLE001  shown by the screen, which owns the terminal
            self.error = error

    def _play(self, producer: KafkaProducer) -> None:
        began = time.monotonic()
        span = self._end_ms - self._start_ms
        while self.clock_ms < self._end_ms and not self._stopped.is_set():
            passed = (time.monotonic() - began) / self._seconds
            until = min(self._end_ms, self._start_ms + int(span * passed))
            rows = self._orders.between(self.clock_ms, until)
            batch = [self._orders.event(row) for row in rows]
            if self._simulated:
                batch += self._sessions(until)
            for event in sorted(batch, key=lambda e: e.time_ms):
                self._send(producer, event)
            self.sent += len(batch)
            self.clock_ms = until
            if batch and self.first_sent_at is None:
                self.first_sent_at = time.monotonic()
            self._stopped.wait(_TICK_S)

    def _sessions(self, until: int) -> Sequence[Played]:
        past = self._orders.between(self.clock_ms - 30 * DAY_MS, self.clock_ms)
        known = [(self._orders.user_ids[r], self._orders.times_ms[r]) for r in past]
        sessions = simulate(known, self.clock_ms, until, seed=1) if until > self.clock_ms else []
        self.simulated += len(sessions)
        return sessions

    def _send(self, producer: KafkaProducer, event: Played) -> None:
        topic = {
            "browse": self._kafka.browse,
            "purchase": self._kafka.purchase,
            "interaction": self._kafka.interaction,
        }[event.topic_type]
        producer.send(
            self._kafka.mixed or topic,
            key=event.user_id.encode(),
            value=event.body,
            partition=partition(event.user_id, self._kafka.partitions, self._kafka.partitioner),
        )
