"""Livevalue keeps the worth of every user current while events arrive.

    from livevalue import ValueClient
    with ValueClient.connect() as values:
        values.get("ada")

Importing this loads neither torch nor Faust nor a Kafka client; what is named is loaded then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from livevalue.client import ValueClient

__version__ = "0.1.0"

__all__ = ["ValueClient", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "ValueClient":
        from livevalue.client import ValueClient

        return ValueClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
