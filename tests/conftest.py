"""Fixtures that every test may use: the embedded stack, fresh names, real data.

One Kafka and one Valkey serve the whole run; tests keep apart by their own topic and key names.
"""

from __future__ import annotations

import os

# Before numpy and onnxruntime load: many small thread pools on few cores only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from livevalue.embedded import Stack

# Settings of a deployment that the shell happens to name are not the tests'.
for _name in [name for name in os.environ if name.startswith("LIVEVALUE_") and "__" in name]:
    del os.environ[_name]

# No time limit per example: on a shared machine it only tells of the load. The same examples in
# every run, so that a change is judged by what it changed; `make fuzz` looks for new ones.
hypothesis.settings.register_profile("settled", deadline=None, derandomize=True)
hypothesis.settings.register_profile(
    "searching", deadline=None, max_examples=2_000, print_blob=True
)
hypothesis.settings.load_profile("settled")

ROOT = Path(__file__).resolve().parent.parent

# The folders whose tests wait for servers begin first, long files before short ones; what only
# computes, file by file a few seconds, is left for the end, so that no job works there alone.
_FIRST = ("e2e", "parity", "livevalue", "embedded", "streams", "contract")

_names = count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files for jobs that take one after the other (see Makefile)."""

    def rank(item: pytest.Item) -> int:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        return _FIRST.index(folder) if folder in _FIRST else len(_FIRST)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running Kafka and Valkey: `.bootstrap`, `.redis_url`. Without Java this is an error."""
    from livevalue.embedded import Stack  # here, so that tests of pure code load less

    with Stack.started(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture
def topic_prefix() -> str:
    """Prefix of topic names, consumer groups and transactional ids that no other test has."""
    return f"t{os.getpid()}x{next(_names)}."


@pytest.fixture
def store_name() -> str:
    """Name of a store that no other test has."""
    return f"t{os.getpid()}x{next(_names)}"


@pytest.fixture(scope="session")
def compose() -> list[str]:
    """The words that run Docker Compose; it checks a file without an engine."""
    for command in (["docker-compose"], ["docker", "compose"]):
        # docker may be there without its compose plugin
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version"], capture_output=True, check=False)
            if done.returncode == 0:
                return command
    pytest.skip("neither docker-compose nor the compose plugin of docker is installed")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real event logs; the test is skipped where it is missing."""
    path = Path(os.environ.get("LIVEVALUE_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip("no folder of real event logs: set LIVEVALUE_DATA to one")
    return path
