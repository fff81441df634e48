"""The run folder of a stack: whose it is, and what it remembers.

```
lock            held while the stack or any of its servers runs; its owner's pid
ports.json      the ports of the last run
kafka/          server.properties, data/, kafka.log
valkey/         valkey.conf, appendonlydir/, valkey.log
```

The lock is the system's (flock), so a crash leaves none behind. The keepers of the servers
hold it too: until the last server of a killed stack has ended, the folder is not free.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

from livevalue.embedded.errors import StackError

# A keeper gives its server 5 s after the parent's death, then kills it.
_LEFTOVERS_S = 8.0


class RunFolder:
    """An owned run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = -1

    @property
    def descriptor(self) -> int:
        """The held lock, for keepers to hold as well."""
        return self._handle

    def acquire(self) -> None:
        """Make the folder and own it, or say who does."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            self.release()
            raise StackError(
                f"cannot write in the folder {self.path} ({error.strerror}): "
                "choose another one, or give yourself the right to write there"
            ) from error
        give_up = time.monotonic() + _LEFTOVERS_S
        while not self._try():
            owner = self._owner()
            if (owner and _alive(owner)) or time.monotonic() > give_up:
                self.release()
                raise StackError(
                    f"the folder {self.path} is in use by a stack of process {owner or 'unknown'}: "
                    "stop that one first, or choose another folder"
                )
            time.sleep(0.05)
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, b"%d\n" % os.getpid(), 0)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _owner(self) -> int:
        try:
            return int(os.pread(self._handle, 20, 0))
        except ValueError:
            return 0

    def release(self) -> None:
        """Give it up; a second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def ports(self) -> dict[str, int]:
        """Those of the last run; none at the first."""
        try:
            read = json.loads((self.path / "ports.json").read_text())
            return {str(name): int(port) for name, port in read.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def remember(self, ports: dict[str, int]) -> None:
        partial = self.path / ".ports.json"
        partial.write_text(json.dumps(ports) + "\n")
        partial.replace(self.path / "ports.json")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
