"""Holds one server and ends it when the process that wanted it is gone.

Run as a script with the standard library alone: `python -I -S keeper.py PARENT COMMAND…`, its
standard input a pipe from the parent. It prints the server's pid, then waits. When the parent
dies, however it dies, the pipe ends or the parent's pid changes: the server gets SIGTERM, and
SIGKILL if it is still there after GRACE_S. The server dies with the keeper, too (Linux only).

Why a process and not PR_SET_PDEATHSIG in the parent: that signal comes when the *thread* that
started the child ends (prctl(2)), so a stack started from a worker thread would lose its
servers at the end of that thread; macOS has no such call. Why the pid is watched beside the
pipe: a process forked from the parent keeps the pipe open.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time

GRACE_S = 5.0
POLL_S = 0.2
_PR_SET_PDEATHSIG = 1


def _die_with_keeper() -> None:
    """Runs in the server's process before it becomes the server."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(parent: int, command: list[str]) -> int:
    """Run the command until it ends or the parent does; its exit code, 128 + signal if killed."""
    # Ctrl-C goes to the whole terminal group: the parent decides, not the keeper.
    for name in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        stderr=sys.stderr,
        preexec_fn=_restore_and_bind,
        start_new_session=True,
    )
    os.write(1, b"%d\n" % server.pid)
    os.close(1)
    orphaned_at = None
    pipe: list[int] = [0]
    while (code := server.poll()) is None:
        if pipe and select.select(pipe, [], [], POLL_S)[0] and not os.read(0, 1):
            pipe = []
        elif not pipe:
            time.sleep(POLL_S / 4)
        if orphaned_at is None and (not pipe or os.getppid() != parent):
            orphaned_at = time.monotonic()
            server.send_signal(signal.SIGCONT)
            server.terminate()
        elif orphaned_at is not None and time.monotonic() - orphaned_at > GRACE_S:
            server.kill()
    return code if code >= 0 else 128 - code


def _restore_and_bind() -> None:
    for name in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)
    _die_with_keeper()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
