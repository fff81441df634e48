"""CloudEvents around an event: its attributes stand in for fields that the data leaves out.

Binary mode: `ce_…` headers, the value is the data. Structured mode: content type
`application/cloudevents+json`, the value is the envelope with `data` or `data_base64` in it.
`id` -> event_id, `time` -> event_time, `subject` or else `partitionkey` -> user_id, the last
part of `type` after a dot -> type (`com.shop.purchase`), where it is one of ours.
Ids are unique per `source` only, so the source joins the event's identity.
Source: CloudEvents 1.0.2, JSON format section 3, Kafka binding sections 3.1 to 3.3.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any, Literal

from featurestore.events import MODELS, NotJson, loads

Headers = Sequence[tuple[str, bytes]]
Mode = Literal["binary", "structured", ""]
_NAMES = {"id": "event_id", "time": "event_time", "subject": "user_id"}


class NotCloudEvent(ValueError):
    """Announced as a CloudEvent, but lacks what one must have."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


def mode(headers: Headers) -> Mode:
    """How a record's event is wrapped, "" for not at all."""
    for name, value in headers:
        name = name.lower()
        if name == "ce_specversion":
            return "binary"
        if name == "content-type" and (value or b"").lower().startswith(b"application/cloudevents"):
            return "structured"
    return ""


def unwrap(mode: Mode, value: Any, headers: Headers) -> tuple[Any, str]:
    """The event's own fields, and the source that scopes its id (empty where the data has one)."""
    if mode == "binary":
        attributes: dict[str, Any] = {
            name.lower()[3:]: (text or b"").decode(errors="replace")
            for name, text in headers
            if name.lower().startswith("ce_")
        }
        return _joined(attributes, value)
    if not isinstance(value, dict):
        raise NotCloudEvent("a structured CloudEvent must be an object")
    if "data_base64" in value:
        return _joined(value, _decoded(value["data_base64"]))
    if "data" not in value:
        raise NotCloudEvent("data: a CloudEvent without data", missing=True)
    return _joined(value, value["data"])


def _decoded(encoded: object) -> Any:
    if not isinstance(encoded, str):
        raise NotCloudEvent("data_base64: must be a string")
    try:
        return loads(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError, NotJson) as error:
        raise NotCloudEvent(f"data_base64: {error}") from None


def _joined(attributes: dict[str, Any], data: Any) -> tuple[Any, str]:
    if not isinstance(data, dict):
        return data, ""
    fields = dict(data)
    for attribute, name in _NAMES.items():
        if fields.get(name) is None and attributes.get(attribute) is not None:
            fields[name] = attributes[attribute]
    if fields.get("user_id") is None and attributes.get("partitionkey") is not None:
        fields["user_id"] = attributes["partitionkey"]
    said = attributes.get("type")
    if fields.get("type") is None and isinstance(said, str):
        name = said.rpartition(".")[2]
        if name in MODELS:
            fields["type"] = name
    source = attributes.get("source")
    scoped = data.get("event_id") is None and isinstance(source, str)
    return fields, f"{source}\0" if scoped else ""
