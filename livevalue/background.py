"""An event loop in a thread of its own, so that plain code may call what is asynchronous.

It works where a loop runs already (a notebook, a web handler), which `asyncio.run` does not, and
keeps connections open between calls. Callers may be several threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """A loop; `call` runs a coroutine in it and gives its result."""

    def __init__(self, name: str = "livevalue") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it there and wait; what it raises is raised here."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def close_after(self, last: Coroutine[Any, Any, None]) -> None:
        """Run a last piece of work, then stop the loop; a second call does nothing."""
        if self._loop.is_closed():
            last.close()
            return
        try:
            self.call(last)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
