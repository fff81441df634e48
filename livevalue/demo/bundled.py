"""The generation that the demo starts on: trained on the orders before `trained_until` alone.

Made by `python -m livevalue.demo.train`, which anybody can run again; see its docstring.
"""

from __future__ import annotations

from importlib.resources import files

from scoring.generation import Generation, load

FOLDER = "generation"


def bundled() -> Generation:
    """The generation that ships with the package; hashes are checked."""
    place = files("livevalue") / "data" / FOLDER
    return load({entry.name: entry.read_bytes() for entry in place.iterdir() if entry.is_file()})
