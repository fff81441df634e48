"""A server process: started through its keeper, watched, stopped, killed, started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from livevalue.embedded import keeper
from livevalue.embedded.errors import Cancelled, StackError

TAIL_LINES = 12


class Server:
    """One server of the stack. Its command and its folder stay, so it can start again.

    Not for use from several threads at once.
    """

    name = "server"

    def __init__(
        self, folder: Path, *, ready_s: float, stop_s: float, held: Sequence[int] = ()
    ) -> None:
        self.folder = folder
        self.ready_s = ready_s
        self.stop_s = stop_s
        # Descriptors that the keeper keeps open: the stack's lock lasts as long as its servers.
        self.held = tuple(held)
        self.cancelled: Callable[[], bool] = lambda: False
        self._keeper: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._log_from = 0

    # What a server says of itself.

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        return os.environ

    def prepare(self) -> None:
        """Write configuration; runs before each start."""

    def is_ready(self) -> bool:
        """Does it answer?"""
        raise NotImplementedError

    # What all servers do.

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        """Process id of the server itself; 0 while it does not run."""
        return self._pid if self.running else 0

    @property
    def running(self) -> bool:
        return self._keeper is not None and self._keeper.poll() is None

    def start(self) -> None:
        """Start, and return when it answers. The port and the data are those of before."""
        if self.running:
            return
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prepare()
        with self.log.open("ab") as log:
            self._log_from = log.tell()
            self._keeper = subprocess.Popen(
                kept(self.command()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self.folder,
                env=dict(self.environment()),
                start_new_session=True,
                pass_fds=self.held,
            )
        assert self._keeper.stdout is not None
        with self._keeper.stdout as pipe:
            line = pipe.readline()
        if not line:
            self._keeper.wait()
            raise StackError(f"{self.name} could not be started{self.tail()}")
        self._pid = int(line)
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        give_up = time.monotonic() + self.ready_s
        pause = 0.01
        while not self.is_ready():
            if not self.running:
                assert self._keeper is not None
                code = self._keeper.returncode
                raise StackError(f"{self.name} ended with code {code} at its start{self.tail()}")
            if self.cancelled():
                self.kill()
                raise Cancelled(f"the start of {self.name} was cancelled")
            if time.monotonic() > give_up:
                self.kill()
                raise StackError(
                    f"{self.name} gave no answer within {self.ready_s:.0f} s{self.tail()}"
                )
            time.sleep(pause)
            pause = min(0.1, pause * 1.5)

    def stop(self) -> None:
        """End it as it wants to be ended; by force if that takes too long."""
        self._end(signal.SIGTERM, self.stop_s)

    def kill(self) -> None:
        """kill -9: what a crash or a lost machine looks like."""
        self._end(signal.SIGKILL, 10.0)

    def _end(self, how: signal.Signals, within_s: float) -> None:
        if self._keeper is None:
            return
        self._signal(how)
        # A stopped process (SIGSTOP) takes SIGTERM only once it goes on.
        self._signal(signal.SIGCONT)
        try:
            self._keeper.wait(within_s)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._keeper.wait(10.0)
        self.close()

    def _signal(self, how: signal.Signals) -> None:
        if self.running:
            # Gone: the keeper has reaped it and is about to end.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, how)

    def close(self) -> None:
        """Let go of a keeper that has ended."""
        if self._keeper is not None:
            self._keeper.wait(10.0)
            if self._keeper.stdin is not None:
                self._keeper.stdin.close()
            self._keeper = None

    def tail(self) -> str:
        """The last lines that the server logged since its last start, each on its own line."""
        try:
            with self.log.open("rb") as log:
                log.seek(self._log_from)
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        shown = self.telling(lines)[-TAIL_LINES:]
        if not shown:
            return f"; its log {self.log} is empty"
        return f"; from {self.log}:\n" + "\n".join(f"  {line}" for line in shown)

    def telling(self, lines: list[str]) -> list[str]:
        """Those lines of the log that say why."""
        return lines


def kept(command: Sequence[str]) -> list[str]:
    """The command under a keeper, which wants a pipe as its standard input."""
    return [sys.executable, "-I", "-S", keeper.__file__, str(os.getpid()), *command]


def run_kept(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], within_s: float
) -> tuple[int, str]:
    """Run a short command that, like the servers, ends with us: (exit code, what it said)."""
    with tempfile.TemporaryFile() as output:
        running = subprocess.Popen(
            kept(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=output,
            cwd=cwd,
            env=dict(env),
            start_new_session=True,
        )
        assert running.stdin is not None
        # Closing the pipe, on whatever way out, is what ends it.
        with running.stdin:
            try:
                code = running.wait(within_s)
            except subprocess.TimeoutExpired:
                code = -1
        running.wait(keeper.GRACE_S * 2)
        output.seek(0)
        return code, output.read().decode("utf-8", "replace")
