"""A steady load of events from a thread, while something else is tried."""

from __future__ import annotations

import threading

from tests.e2e.deployment import Deployment, some_events


class Load:
    """Sends events at a steady rate until stopped."""

    def __init__(self, deployment: Deployment, users: int, every_s: float = 0.004) -> None:
        self._deployment = deployment
        self._users = users
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._deployment.flush()

    def _run(self) -> None:
        for source, event in some_events(100_000, self._users, seed=2, first=10_000):
            if self._stop.wait(self._every_s):
                return
            self._deployment.send(source, event)
