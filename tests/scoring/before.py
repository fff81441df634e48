"""A generation of an earlier version, byte for byte: the net that was bundled until 2026-11-26.

It reads windows, and names no held column and no reference.
"""

from __future__ import annotations

from pathlib import Path

from scoring.generation import Generation, load

FOLDER = Path(__file__).parents[1] / "golden" / "generation-2026-11"


def generation_of_before() -> Generation:
    """Hashes are checked."""
    return load({file.name: file.read_bytes() for file in FOLDER.iterdir()})
