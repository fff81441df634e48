"""Commands through their own entry, in this process: a start of Python for each takes a second.

A test module imports the fixture `ask` by name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from livevalue.cli import app, main


class Said(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str


Ask = Callable[..., Said]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ask:
    monkeypatch.chdir(tmp_path)

    def ask(*words: str, **settings: str) -> Said:
        """`settings`: of the environment."""
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["livevalue", *words])
        monkeypatch.setattr(app, "registered_commands", [])  # each call registers its own
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Said(int(ended.value.code or 0), out, err)

    return ask
