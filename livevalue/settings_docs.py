"""Writes docs/settings.md from the settings themselves, so that the page cannot be wrong.

`python -m livevalue.settings_docs` writes it, `--check` says whether it is current (exit code 1
if not). Source: the pydantic models in streams/settings.py and what they compose.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from streams.settings import Settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"

_HEAD = """# Settings

*Generated from the code by `python -m livevalue.settings_docs`; do not edit.*

Later wins: default, `livevalue.toml` in the working directory, environment, arguments in code.
In the environment a name is `LIVEVALUE_`, the section, `__`, the setting; lists and tables are
JSON. In `livevalue.toml` a section is a table:

```toml
[kafka]
bootstrap = "kafka-1:9092,kafka-2:9092"

[features]
lateness = "PT72H"      # ISO 8601 duration, or seconds
```

`livevalue settings` prints what is in force and where each came from, secrets masked. Settings
under `value`, `features` and the input topics and partitions under `kafka` decide what a fold
means: they are in the store's fingerprint, and a worker that finds another fingerprint halts and
names the key (see [architecture](architecture.md#stores)). `KAFKA_HOME` points the embedded stack
at a Kafka that is already unpacked.
"""


def render(settings: type[BaseModel] = Settings, prefix: str = "LIVEVALUE_") -> str:
    """The whole page.

    >>> "`LIVEVALUE_KAFKA__BOOTSTRAP`" in render()
    True
    """
    parts = [_HEAD]
    for name, info in settings.model_fields.items():
        section = info.annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            continue
        parts.append(f"\n## {name}\n\n{_first_line(section)}\n")
        parts.append("| setting | default | type | meaning |\n|---|---|---|---|")
        parts.extend(_rows(section, f"{prefix}{name.upper()}__"))
        for nested in _tables(section):
            parts.append(f"\n### {nested.__name__}\n\n{_first_line(nested)}\n")
            parts.append("| field | default | type | meaning |\n|---|---|---|---|")
            parts.extend(_rows(nested, ""))
    return "\n".join(parts) + "\n"


def _rows(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, info in section.model_fields.items():
        key = f"{prefix}{name.upper()}" if prefix else name
        meaning = (info.description or "").replace("|", "\\|")
        kind = _type(info.annotation).replace("|", "\\|")
        yield f"| `{key}` | {_default(section, name, info)} | {kind} | {meaning} |"


def _default(section: type[BaseModel], name: str, info: FieldInfo) -> str:
    if info.is_required():
        return "*required*"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    else:
        dumped = section.model_construct(**{name: value}).model_dump(mode="json", warnings=False)
        value = dumped[name]
    if value is None or value == "":
        return "*none*"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _type(annotation: Any) -> str:
    """How a person would write the type: `integer`, `duration`, `a` or `b`."""
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    if origin is dict:
        return "table"
    if origin is tuple:
        inner = [arg for arg in get_args(annotation) if arg is not Ellipsis]
        return f"list of {_type(inner[0])}"
    if origin is not None:
        return " or ".join(_type(arg) for arg in get_args(annotation) if arg is not NoneType)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    words = {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}
    words |= {"timedelta": "duration", "SecretStr": "secret text", "Decimal": "decimal"}
    name = str(annotation.__name__)
    return words.get(name, name)


def _tables(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Models that stand in lists of this section, in order."""
    for info in section.model_fields.values():
        for arg in get_args(info.annotation):
            if isinstance(arg, type) and issubclass(arg, BaseModel):
                yield arg


def _first_line(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


def main(arguments: list[str] | None = None) -> int:
    """Write or check the page; the exit code."""
    parser = argparse.ArgumentParser(description="docs/settings.md from the settings' code")
    parser.add_argument("--check", action="store_true", help="only say whether it is current")
    options = parser.parse_args(arguments)
    page = render()
    if not options.check:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
        return 0
    sys.stderr.write("docs/settings.md is not current: run python -m livevalue.settings_docs\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
