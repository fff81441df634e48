"""Processes that need not import everything again: forks of a server that has done nothing else.

A start of Python costs a command or a worker about a second of CPU, and the tests start some two
hundred. `multiprocessing`'s fork server imports once what they import; a process of ours is a
fork of it with its own session, folder, environment, words and output. From there on it is what
`python -m livevalue` or `python -m streams.app` is: killed, stopped and waited for as such. Tests
of the start itself (the command line, what a worker loads) start from nothing all the same.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
# torch is not among them: a worker must not load it, and few commands do.
_FORKS.set_forkserver_preload(
    [
        "streams.app",
        "onnxruntime",
        "pyarrow.parquet",
        "livevalue.cli",
        *(
            f"livevalue.jobs.{name}"
            for name in ("generating", "replaying", "recovering", "storing")
        ),
        *(f"livevalue.commands.{name}" for name in ("generations", "log", "recover", "stores")),
    ]
)

COMMAND, WORKER = "livevalue", "worker"


class Fork:
    """One process, with the methods of subprocess.Popen that tests use.

    `program`: COMMAND with `words`, or WORKER. Its output is appended to files.
    """

    def __init__(
        self,
        program: str,
        words: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdout: Path,
        stderr: Path | None = None,
    ) -> None:
        self.args = (program, *words)
        self._process = _FORKS.Process(
            target=_enter, args=(program, list(words), cwd, dict(env), stdout, stderr or stdout)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    words: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """A `livevalue` command to its end, as subprocess.run with captured text."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        fork = Fork(COMMAND, words, cwd=cwd, env=env, stdout=out, stderr=err)
        try:
            code = fork.wait(timeout)
        finally:
            fork.kill()
            fork.wait(10)
        return subprocess.CompletedProcess(fork.args, code, out.read_text(), err.read_text())


def _enter(
    program: str,
    words: list[str],
    cwd: Path,
    environment: dict[str, str],
    stdout: Path,
    stderr: Path,
) -> None:
    """In the fork: become the process that was asked for."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, stdout), (2, stderr)):
        with path.open("ab") as output:
            os.dup2(output.fileno(), number)
    sys.argv = [program, *words]
    if program == COMMAND:
        from livevalue.cli import main

        main()
    else:
        from streams.app import main as work

        work()
