"""Where settings are read from, and what a person is told of one that is wrong.

The environment and livevalue.toml as pydantic-settings reads them, but a mistake in either is one
line that names the setting or the file (`streams.errors.WrongSetting`), and the name of a section
that does not exist is refused: pydantic-settings passes over it in silence. Names without `__`,
such as LIVEVALUE_DIR, are no settings and stay free.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, TomlConfigSettingsSource
from pydantic_settings.exceptions import SettingsError

from streams.errors import WrongSetting

_PREFIX = "LIVEVALUE_"
_JSON = 'lists and tables are JSON here, for example [7, 30] or {"name": 1}'


def nearest(name: str, sections: Mapping[str, Any]) -> str:
    """The section that was most likely meant.

    >>> nearest("KAFAK", {"kafka": 0, "worker": 0})
    'kafka'
    """
    return get_close_matches(name.lower(), list(sections), n=1, cutoff=0.0)[0]


class Environment(EnvSettingsSource):
    """LIVEVALUE_ + section + __ + name."""

    _spoilt: Any = None  # the value that was decoded last and is no JSON

    def __call__(self) -> dict[str, Any]:
        """The sections that the environment says something of."""
        sections = self.settings_cls.model_fields
        for name in map(str.upper, self.env_vars):
            section, nested, setting = name.removeprefix(_PREFIX).partition("__")
            if name.startswith(_PREFIX) and nested and section.lower() not in sections:
                meant = f"{_PREFIX}{nearest(section, sections).upper()}__{setting}"
                raise WrongSetting(
                    f"{name} is no setting: there is no section {section}, is {meant} meant?"
                )
        try:
            found = super().__call__()
        except SettingsError as error:
            at = [name.upper() for name, value in self.env_vars.items() if value == self._spoilt]
            ours = [name for name in at if name.startswith(_PREFIX)]
            raise WrongSetting(
                f"{', '.join(ours) or error}: not JSON ({error.__cause__}); {_JSON}"
            ) from None
        for section, values in found.items():
            if not isinstance(values, Mapping):
                name = f"{_PREFIX}{section}".upper()
                raise WrongSetting(f"{name} is a section: set {name}__… for a setting of it")
        return found

    def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
        """As the base does; remembers what cannot be decoded, to name it."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            self._spoilt = value
            raise


class File(TomlConfigSettingsSource):
    """livevalue.toml in the working directory."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        path = Path(str(settings_cls.model_config.get("toml_file")))
        try:
            super().__init__(settings_cls)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise WrongSetting(
                f"{path} is not TOML: {error}; a section is written [kafka], "
                'a setting below it bootstrap = "kafka-1:9092"'
            ) from None
        except OSError as error:
            raise WrongSetting(f"{path} cannot be read: {error.strerror}") from None
        sections = settings_cls.model_fields
        for name, values in self.toml_data.items():
            if name not in sections:
                meant = nearest(name, sections)
                raise WrongSetting(f"{path}: {name} is no section, is [{meant}] meant?")
            if not isinstance(values, Mapping):
                raise WrongSetting(
                    f"{path}: {name} is a section: write [{name}] and its settings below it"
                )


def wrong_setting(error: ValidationError) -> str:
    """The first wrong setting by the name that it has in the environment.

    >>> from streams.settings import Settings
    >>> try:
    ...     Settings(kafka={"partitions": 0})
    ... except ValidationError as error:
    ...     wrong_setting(error)
    'LIVEVALUE_KAFKA__PARTITIONS: Input should be greater than or equal to 1 (it is 0)'
    """
    first = error.errors(include_url=False, include_context=False)[0]
    place = "__".join(str(part) for part in first["loc"]).upper()
    said = first["msg"].removeprefix("Value error, ")
    secret = any(word in place for word in ("PASSWORD", "TOKEN", "URL"))
    whole = first["type"] in ("value_error", "missing") and isinstance(first["input"], Mapping)
    given = "" if secret or whole else f" (it is {first['input']!r})"
    if error.title not in ("Settings", "_Read"):
        return f"{place.lower() or error.title}: {said}{given}"
    if first["type"] == "extra_forbidden":
        return f"{_PREFIX}{place} is no setting: `livevalue settings` prints those that are"
    return f"{_PREFIX}{place}: {said}{given}"
