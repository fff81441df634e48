"""Finds the stack that runs beside us, so that a command in a second terminal needs no settings.

`livevalue up` and `livevalue demo` write stack.json into their folder when they are ready:
`kafka` (host:port), `redis` (URL), `pid`, and `settings`, the sections in which their deployment
differs from the defaults. `settings()` adds it below livevalue.toml and the environment: it
fills only what those leave open, and is looked at only where they name no broker.

The folder is LIVEVALUE_DIR, else `.livevalue` in the working directory.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
)

from streams.settings import Settings
from streams.settings_sources import Environment, File

FILE = "stack.json"
_FOLDER = Path(".livevalue")


def default_folder() -> Path:
    """Where `up` and `demo` run unless told otherwise."""
    return Path(os.environ.get("LIVEVALUE_DIR") or _FOLDER)


def prefix(folder: Path) -> str:
    """What a command in another terminal needs before it to find a stack in `folder`.

    >>> prefix(Path(".livevalue")), prefix(Path("my trial"))
    ('', "LIVEVALUE_DIR='my trial' ")
    """
    if folder.resolve() == _FOLDER.resolve():
        return ""
    return f"LIVEVALUE_DIR={shlex.quote(str(folder))} "


def announce(
    folder: Path, *, kafka: str, redis: str, settings: Mapping[str, Any] | None = None
) -> Path:
    """Write stack.json, whole or not at all."""
    path = folder / FILE
    partial = folder / f".{FILE}"
    found = {"kafka": kafka, "redis": redis, "pid": os.getpid(), "settings": dict(settings or {})}
    partial.write_text(json.dumps(found) + "\n")
    partial.replace(path)
    return path


def withdraw(folder: Path) -> None:
    """The stack stops: take stack.json away."""
    (folder / FILE).unlink(missing_ok=True)


def find(folder: Path | None = None) -> dict[str, Any]:
    """stack.json of a stack whose process lives; {} where there is none."""
    try:
        found = json.loads(((folder or default_folder()) / FILE).read_text())
        os.kill(int(found["pid"]), 0)
    except PermissionError:
        return dict(found)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return dict(found)


def settings(folder: Path | None = None, **arguments: Any) -> Settings:
    """Settings as `Settings(**arguments)` reads them, and below them those of a running stack."""
    return read(folder, **arguments)[0]


def read(folder: Path | None = None, **arguments: Any) -> tuple[Settings, dict[str, str]]:
    """The settings, and for each that is not the default where it comes from.

    The names are those of the environment: {"LIVEVALUE_KAFKA__BOOTSTRAP": "environment"}.
    """
    said: list[tuple[str, dict[str, Any]]] = [
        ("arguments", arguments),
        ("environment", Environment(Settings)()),
        ("livevalue.toml", File(Settings)()),
    ]
    if not any(part.get("kafka", {}).get("bootstrap") for _, part in said):
        said.append((f"the stack in {folder or default_folder()}", _of_stack(find(folder))))
    below = said[-1][1] if len(said) == 4 else {}

    class _Read(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            above = super().settings_customise_sources(
                settings_cls, init_settings, env_settings, dotenv_settings, file_secret_settings
            )
            return (*above, InitSettingsSource(settings_cls, below))

    origins: dict[str, str] = {}
    for origin, part in reversed(said):
        for section, values in part.items():
            if isinstance(values, Mapping):
                origins |= {f"LIVEVALUE_{section}__{name}".upper(): origin for name in values}
    merged = _Read(**arguments)
    # Plain Settings again: what is pickled to worker processes must be importable there.
    sections = {name: getattr(merged, name) for name in Settings.model_fields}
    return Settings.model_construct(_fields_set=merged.model_fields_set, **sections), origins


def _of_stack(found: Mapping[str, Any]) -> dict[str, Any]:
    if not found:
        return {}
    sections = {name: dict(values) for name, values in found.get("settings", {}).items()}
    sections.setdefault("kafka", {})["bootstrap"] = found["kafka"]
    sections.setdefault("store", {})["url"] = found["redis"]
    return sections
