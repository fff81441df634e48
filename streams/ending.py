"""Ending a task for sure.

`asyncio.wait_for` of Python 3.11 loses a cancellation that comes in the very moment in which what
it waits for is done: it gives the result, and the task goes on (python/cpython#86296, mended in
3.12). Seen in a planned restart: a publisher went on waiting for commits that nobody put any
more, and its partition was unserved for the 20 s that its successor waits for it.
"""

from __future__ import annotations

import asyncio
from typing import Any

_AGAIN_S = 0.2


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks until they have ended; never raises what they raise."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)


def asked_to_end() -> bool:
    """Whether the task that runs was cancelled, and not just what it waited for, by its driver."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
