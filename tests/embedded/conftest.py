"""The cache is shared with the whole run, so that nothing is fetched twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from livevalue.embedded import Stack


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a formatted Kafka, which one stack after the other may use."""
    path = tmp_path_factory.mktemp("run")
    with Stack.started(path):
        pass
    return path


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a Python process of the user's, with the code that is given."""
    running: list[subprocess.Popen[str]] = []

    def start(code: str, **environment: str) -> subprocess.Popen[str]:
        root = Path(__file__).resolve().parents[2]
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(root), **environment},
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


def servers_in(folder: Path) -> list[psutil.Process]:
    """Every process, keepers too, that was started in this folder."""
    found = []
    for process in psutil.process_iter():
        # Not the command line: Valkey shows another one than it was started with.
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def eventually(claim: Callable[[], bool], within_s: float) -> bool:
    """Does it become true in time?"""
    give_up = time.monotonic() + within_s
    while time.monotonic() < give_up:
        if claim():
            return True
        time.sleep(0.05)
    return claim()
