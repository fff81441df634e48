"""init: a new project folder, settings and a deployment, made of livevalue/templates.

A template is a file NAME.template, `dot-` in front standing for a dot, and filled by
string.Template: $name, $currency, $version (of livevalue), $next_version (the first one that
may break a promise), and $day_N, the date N days ago. All paths in them are relative.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from featurestore import times
from livevalue import __version__
from livevalue.output import Refused

_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")  # of a package, an image and a group at once
_LONGEST = 60
_SUFFIX = ".template"
_DAYS = 60  # how far back a sample event may lie


def start(folder: Path, currency: str, now_ms: int) -> dict[str, Any]:
    """Make the project, whose name is the folder's; -> what `--json` holds.

    The folder may exist if it is empty. What was written is taken away again if the rest cannot be.
    """
    name = folder.resolve().name
    _check(name, currency)
    files = rendered(name, currency, now_ms)
    written: list[Path] = []
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise Refused(f"{folder} is not empty: name a new folder, nothing was changed")
        for file, text in files.items():
            written.append(folder / file)
            written[-1].write_text(text, encoding="utf-8")
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        if made and folder.is_dir():
            folder.rmdir()
        raise Refused(f"cannot write {folder} ({error.strerror}): name another folder") from error
    return {"name": name, "folder": str(folder), "files": list(files)}


def rendered(name: str, currency: str, now_ms: int) -> dict[str, str]:
    """The project's files by name, as text.

    >>> sorted(rendered("shop", "EUR", 0))[:2]
    ['.dockerignore', '.gitignore']
    """
    major, minor, *_ = __version__.split(".")
    said = {
        "name": name,
        "currency": currency,
        "version": __version__,
        # Before 1.0 a minor version may break promises.
        "next_version": f"0.{int(minor) + 1}" if major == "0" else f"{int(major) + 1}",
        **{f"day_{n}": times.text(now_ms - n * times.DAY_MS)[:10] for n in range(_DAYS)},
    }
    found = (resources.files("livevalue") / "templates").iterdir()
    return {
        re.sub("^dot-", ".", file.name.removesuffix(_SUFFIX)): Template(
            file.read_text(encoding="utf-8")
        ).substitute(said)
        for file in sorted(found, key=lambda file: file.name)
        if file.name.endswith(_SUFFIX)
    }


def _check(name: str, currency: str) -> None:
    """Refuse what could not be installed, or counted in."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise Refused(
            f"{name!r} cannot name a package and an image: use lower-case letters, digits and "
            f"single hyphens, {_LONGEST} at most, a letter first"
        )
    if name == "livevalue":
        raise Refused("a project named livevalue would depend on itself: choose another name")
    if not re.fullmatch(r"[A-Z]{3}", currency):
        raise Refused(f"{currency!r} is no ISO 4217 code: write three letters, such as EUR")
