"""Runs the embedded stack for other processes, until it is told to stop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from livevalue import running
from livevalue.embedded import Stack, StackError
from streams import topics

_LOOK_S = 0.5


def up(
    folder: Path | None, stopped: threading.Event, ready: Callable[[dict[str, Any]], None]
) -> None:
    """Start, make the topics, write stack.json, tell `ready`, and hold until `stopped`.

    A server that ends by itself is an error here: its last words are said.
    """
    where = folder or running.default_folder()
    with Stack.started(where) as stack:
        arguments = {"kafka": {"bootstrap": stack.bootstrap}, "store": {"url": stack.redis_url}}
        topics.apply(running.settings(where, **arguments))
        running.announce(where, kafka=stack.bootstrap, redis=stack.redis_url)
        try:
            found = {"kafka": stack.bootstrap, "redis": stack.redis_url, "pid": os.getpid()}
            ready({**found, "dir": str(where)})
            while not stopped.wait(_LOOK_S):
                for server in (stack.kafka, stack.valkey):
                    if server is not None and not server.running:
                        raise StackError(f"{server.name} has ended{server.tail()}")
        finally:
            running.withdraw(where)
