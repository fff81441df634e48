"""The demo's own worker and retrain, as the processes that a deployment would run.

Each is a `livevalue` command in a process of its own with its settings in the environment, so
that the demo shows the product and not a copy of it. A keeper holds each (embedded/keeper.py):
they end with the demo, however the demo ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from livevalue.embedded.process import kept

_GRACE_S = 15.0


class Command:
    """One `livevalue` command in the background, its output in a file."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._keeper = subprocess.Popen(
                kept([sys.executable, "-m", "livevalue", *arguments]),
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=output,
                start_new_session=True,
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._keeper.poll()

    def stop(self) -> None:
        """SIGTERM by its keeper, SIGKILL if that does not end it."""
        if self._keeper.stdin is not None and not self._keeper.stdin.closed:
            self._keeper.stdin.close()
        try:
            self._keeper.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()

    def last_lines(self, count: int = 8) -> str:
        """The end of its output, for an error message."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-count:])
