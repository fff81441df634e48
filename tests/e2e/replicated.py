"""A deployment whose Redis is not one server, for the tests of failover, splits and slots."""

from __future__ import annotations

import time
from typing import Any

from livevalue.client import ValueClient
from streams import topics
from tests.e2e.deployment import Deployment, send_all, some_events

USERS = 80


class OnReplicas(Deployment):
    """A deployment whose Redis is not one server; `look` connects to whoever holds it now."""

    def __enter__(self) -> OnReplicas:
        topics.apply(self.settings)
        self._producer = None
        self.redis: Any = None
        self._began = time.monotonic()
        return self

    def look(self, client: Any) -> None:
        if self.redis is not None:
            self.redis.close()
        self.redis = client

    def load(self, count: int) -> None:
        """So many events more."""
        send_all(self, list(some_events(count, USERS, first=self.sent)))

    def rolled_back(self) -> int:
        """How often a worker saw that its Redis had gone back."""
        return sum(len(w.lines("redis was rolled back")) for w in self.workers.values())

    def judge(self, what: str) -> None:
        """No worker ended, nothing halted, readers read; the audit finds all and nothing wrong."""
        for worker in self.workers.values():
            assert worker.exit_code is None, worker.log.read_text()[-2000:]
            assert not worker.lines("partition halted")
        with ValueClient.connect(self.settings) as values:
            assert len(values.top(10)) == 10
            assert values.get("u1") is not None
        for worker in self.workers.values():
            assert worker.stop() == 0
        found = self.audit()
        seconds, backs = time.monotonic() - self._began, self.rolled_back()
        print(f"{what}: {backs} roll-backs, {seconds:.0f} s, {found}")
        assert found.clean, found
        assert found.records == self.sent
