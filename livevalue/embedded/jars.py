"""The jars of Apache Kafka: pinned by `kafka.lock.json`, fetched once, offline afterwards.

The lock names every jar by Maven coordinate with size and SHA-256; `python -m
livevalue.embedded.relock VERSION` writes it anew. What is fetched is hashed before it is
kept, so a start needs to compare sizes only. Jars are fetched with jgo, from the repositories
of its own settings file or else Maven Central; a local Maven repository (M2_REPO or
~/.m2/repository) that already holds a jar saves the fetch.

The cache is LIVEVALUE_CACHE, else XDG_CACHE_HOME/livevalue, else ~/.cache/livevalue.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from livevalue.embedded.errors import StackError

# (what is being done, done so far, of how many); bytes while fetching, steps otherwise.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Jar:
    """One pinned file."""

    coordinate: str  # group:artifact:version
    size: int  # bytes
    sha256: str

    @property
    def name(self) -> str:
        """File name, as Maven has it.

        >>> Jar("org.slf4j:slf4j-api:1.7.36", 0, "").name
        'slf4j-api-1.7.36.jar'
        """
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


@dataclass(frozen=True, slots=True)
class Lock:
    """The pinned set."""

    version: str
    jars: tuple[Jar, ...]

    @property
    def bytes(self) -> int:
        return sum(jar.size for jar in self.jars)

    @property
    def digest(self) -> str:
        """Names the set, so that another lock never meets the cache of this one."""
        text = "\n".join(f"{jar.coordinate} {jar.sha256}" for jar in self.jars)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_lock() -> Lock:
    """The lock that came with this package."""
    text = resources.files("livevalue.embedded").joinpath("kafka.lock.json").read_text("utf-8")
    raw = json.loads(text)
    return Lock(raw["version"], tuple(Jar(**jar) for jar in raw["jars"]))


def cache_folder() -> Path:
    """Where fetched and derived files are kept; made if it is not there."""
    named = os.environ.get("LIVEVALUE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (
        Path(named) if named else (Path(base) if base else Path.home() / ".cache") / "livevalue"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(
            f"cannot write the cache folder {folder} ({error.strerror}): "
            "set LIVEVALUE_CACHE to a folder that can be written"
        ) from error
    return folder.resolve()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One process at a time; the others wait."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def kafka_jars(progress: Progress | None = None) -> list[Path]:
    """The class path of Kafka from the cache, fetching what is missing."""
    lock = read_lock()
    folder = cache_folder() / f"kafka-{lock.version}-{lock.digest}"
    if not missing(lock, folder):
        return [folder / jar.name for jar in lock.jars]
    try:
        folder.mkdir(exist_ok=True)
        with exclusive(folder / ".lock"):
            wanted = missing(lock, folder)
            if wanted:
                _fetch(wanted, folder, lock, progress)
    except OSError as error:
        raise StackError(
            f"cannot write {folder} ({error.strerror}): "
            "set LIVEVALUE_CACHE to a folder that can be written"
        ) from error
    return [folder / jar.name for jar in lock.jars]


def missing(lock: Lock, folder: Path) -> list[Jar]:
    """Jars that are not there in full size."""

    def there(jar: Jar) -> bool:
        try:
            return (folder / jar.name).stat().st_size == jar.size
        except OSError:
            return False

    return [jar for jar in lock.jars if not there(jar)]


def _fetch(wanted: list[Jar], folder: Path, lock: Lock, progress: Progress | None) -> None:
    from jgo.config import GlobalSettings
    from jgo.constants import default_maven_repo
    from jgo.maven import MavenContext, PythonResolver

    what = f"fetching Apache Kafka {lock.version}"
    done = lock.bytes - sum(jar.size for jar in wanted)
    if progress:
        progress(what, done, lock.bytes)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        context = MavenContext(
            resolver=PythonResolver(),
            repo_cache=Path(scratch),
            local_repos=[default_maven_repo()],
            remote_repos=GlobalSettings.load().repositories or None,
            timeout=60,
        )
        # Four at a time: most of the jars are small, and latency, not bandwidth, is the wait.
        with ThreadPoolExecutor(4, thread_name_prefix="fetch") as pool:
            futures = {pool.submit(_fetch_one, context, jar, folder): jar for jar in wanted}
            try:
                for future in as_completed(futures):
                    future.result()
                    done += futures[future].size
                    if progress:
                        progress(what, done, lock.bytes)
            except BaseException:  # Ctrl-C as well: what has not begun shall not
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _fetch_one(context: Any, jar: Jar, folder: Path) -> None:
    """Fetch, hash, and only then put in place, so that a file with that name is a good file."""
    group, artifact, version = jar.coordinate.split(":")
    try:
        source: Path = context.project(group, artifact).at_version(version).artifact().resolve()
    except Exception as error:  # jgo raises RuntimeError, requests its own tree
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        # A network that looks into TLS has an authority of its own.
        inspected = "CERTIFICATE_VERIFY_FAILED" in str(error)
        trust = "set REQUESTS_CA_BUNDLE to the authorities of your network, " if inspected else ""
        raise StackError(
            f"cannot fetch {jar.coordinate} ({first[0]}): check the network, {trust}name a Maven "
            "repository under [repositories] in ~/.config/jgo.conf, set KAFKA_HOME to an "
            "unpacked Kafka, or LIVEVALUE_KAFKA__BOOTSTRAP to a running one"
        ) from error
    partial = folder / f".{jar.name}.part"
    digest = hashlib.sha256()
    with source.open("rb") as reader, partial.open("wb") as writer:
        while block := reader.read(1 << 20):
            digest.update(block)
            writer.write(block)
    if digest.hexdigest() != jar.sha256:
        partial.unlink()
        raise StackError(
            f"{source} has SHA-256 {digest.hexdigest()[:16]}…, the lock file says "
            f"{jar.sha256[:16]}…: it was changed on the way or in the local Maven repository; "
            "delete it there, or try another network"
        )
    shutil.copymode(source, partial)
    partial.replace(folder / jar.name)
