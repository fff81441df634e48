"""Ctrl-C and SIGTERM as a wish to end, not as an exception in the middle of something."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopped_by_signal() -> Iterator[threading.Event]:
    """An event that is set by SIGINT, SIGTERM or SIGHUP. A second SIGINT interrupts at once.

    Before anything waits on the event, the first signal raises KeyboardInterrupt as usual:
    a start that takes long can be interrupted.
    """
    stopped = Stop()

    def stop(number: int, frame: FrameType | None) -> None:
        again = stopped.is_set()
        stopped.set()
        if again or not stopped.awaited:
            raise KeyboardInterrupt

    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {name: signal.signal(name, stop) for name in names}
    try:
        yield stopped
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


class Stop(threading.Event):
    """Knows whether its owner has come to the point of waiting."""

    awaited = False

    def wait(self, timeout: float | None = None) -> bool:
        self.awaited = True
        return super().wait(timeout)
