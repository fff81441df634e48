"""A task that was cancelled ends, whatever it was waiting for at that moment."""

from __future__ import annotations

import asyncio

import pytest

from streams.ending import end


@pytest.mark.parametrize("turns", range(6))
async def test_a_task_ends_though_what_it_waited_for_was_done_at_that_moment(turns: int) -> None:
    done = asyncio.get_running_loop().create_future()

    async def work() -> None:
        await done

    async def wait_then_wait_on() -> None:
        await asyncio.wait_for(work(), 30)
        await asyncio.Event().wait()  # as a publisher waits for the next commit

    task = asyncio.create_task(wait_then_wait_on())
    await asyncio.sleep(0.01)
    done.set_result(None)
    for _ in range(turns):
        await asyncio.sleep(0)
    await asyncio.wait_for(end(task), 5)
    assert task.cancelled()


async def test_ending_raises_nothing_of_a_task_that_has_failed() -> None:
    async def fail() -> None:
        raise OSError("gone")

    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await end(task)
    assert isinstance(task.exception(), OSError)
