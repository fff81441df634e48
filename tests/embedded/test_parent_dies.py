"""However the process that started a stack ends, its servers end, too."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from livevalue.embedded import Stack
from tests.embedded.conftest import eventually, servers_in

_HOLD = """
import signal, sys, threading, time
# As a terminal starts it: a test run in the background hands on that it ignores these two.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from livevalue.embedded import Stack

def hold():
    with Stack.started({folder!r}) as stack:
        print(stack.kafka.pid, stack.valkey.pid, flush=True)
        time.sleep(100)

{run}
"""

Script = Callable[..., "subprocess.Popen[str]"]


def _hold(script: Script, folder: Path, run: str = "hold()") -> tuple[subprocess.Popen[str], int]:
    process = script(_HOLD.format(folder=str(folder), run=run))
    assert process.stdout is not None
    kafka, _ = map(int, process.stdout.readline().split())
    assert len(servers_in(folder)) == 4, "two servers and their keepers"
    return process, kafka


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_process_outlives_a_parent_that_got(
    how: signal.Signals, script: Script, folder: Path
) -> None:
    process, _ = _hold(script, folder)
    process.send_signal(how)
    process.wait(10)
    assert eventually(lambda: servers_in(folder) == [], 10)


def test_no_process_outlives_a_parent_killed_while_it_starts(script: Script, folder: Path) -> None:
    process = script(_HOLD.format(folder=str(folder), run="hold()"))
    assert eventually(lambda: bool(servers_in(folder)), 20)
    process.kill()
    process.wait(10)
    assert eventually(lambda: servers_in(folder) == [], 10)


def test_no_server_outlives_a_killed_keeper(script: Script, folder: Path) -> None:
    process, kafka = _hold(script, folder)
    keeper = psutil.Process(kafka).parent()
    assert keeper is not None
    assert keeper.pid != process.pid
    keeper.kill()
    assert eventually(lambda: not psutil.pid_exists(kafka), 10)


def test_servers_outlive_the_thread_that_started_them(script: Script, folder: Path) -> None:
    start = f"""
stack = Stack({str(folder)!r})
thread = threading.Thread(target=stack.start)
thread.start()
thread.join()
print(stack.kafka.pid, stack.valkey.pid, flush=True)
time.sleep(100)
"""
    _, kafka = _hold(script, folder, start)
    time.sleep(1)
    assert psutil.pid_exists(kafka)


def test_a_forked_child_does_not_keep_the_servers_alive(script: Script, folder: Path) -> None:
    fork = f"""
import os
with Stack.started({str(folder)!r}) as stack:
    child = os.fork()
    if not child:
        time.sleep(100)
    print(stack.kafka.pid, child, flush=True)
    time.sleep(100)
"""
    process = script(_HOLD.format(folder=str(folder), run=fork))
    assert process.stdout is not None
    _, child = map(int, process.stdout.readline().split())
    try:
        process.kill()
        process.wait(10)
        assert psutil.pid_exists(child)
        assert eventually(lambda: servers_in(folder) == [], 10)
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_folder_of_a_killed_stack_can_be_used_at_once(script: Script, folder: Path) -> None:
    process, _ = _hold(script, folder)
    process.kill()
    process.wait(10)
    with Stack.started(folder) as stack:
        assert stack.kafka is not None
        assert stack.kafka.running
