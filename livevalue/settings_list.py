"""Every setting with its value and origin, for `livevalue settings`. No secret is in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, SecretStr

from featurestore.secrets import MASK, shown
from livevalue import running
from streams.settings import Settings


@dataclass(frozen=True, slots=True)
class Row:
    """One setting."""

    name: str  # as in the environment
    value: Any  # as in JSON; secrets masked
    origin: str

    @property
    def shown(self) -> str:
        """The value as one writes it in the environment."""
        return self.value if isinstance(self.value, str) else json.dumps(self.value)


def listed() -> list[Row]:
    """In the order of the sections."""
    settings, origins = running.read()
    rows = []
    for section in Settings.model_fields:
        values: BaseModel = getattr(settings, section)
        dumped = values.model_dump(mode="json")
        for name in type(values).model_fields:
            key = f"LIVEVALUE_{section}__{name}".upper()
            held, value = getattr(values, name), dumped[name]
            if isinstance(held, SecretStr):
                value = masked(held)
            elif isinstance(value, str):
                value = shown(value)
            rows.append(Row(key, value, origins.get(key, "default")))
    return rows


def masked(secret: SecretStr) -> str:
    """Of a URL all but the password, of anything else nothing.

    >>> masked(SecretStr("redis://app:hunter2@cache:6379/0")), masked(SecretStr("hunter2"))
    ('redis://app:***@cache:6379/0', '***')
    >>> masked(SecretStr("redis://127.0.0.1:6379/0")), masked(SecretStr(""))
    ('redis://127.0.0.1:6379/0', '')
    """
    text = secret.get_secret_value()
    if "://" in text:
        return shown(text, user=True)
    return MASK if text else ""
