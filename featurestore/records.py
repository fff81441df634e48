"""The fast twin of featurestore.events: msgspec structs of one event each.

Numbers that must stay exact are `Raw`: the token as it stood in the record. What these structs
accept the pydantic models accept too; what they refuse, or the codec finds odd, goes through the
models, which decide. So only speed lives here, and no rule of its own.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from featurestore.events import MAX_MILLIS

NULL = Raw(b"null")  # of an exact number or object that was left out

Millis = Annotated[int, Meta(ge=0, le=MAX_MILLIS)]
EventId = Annotated[str, Meta(min_length=1, max_length=128)]
UserId = Annotated[str, Meta(min_length=1, max_length=256)]
Action = Annotated[str, Meta(min_length=1, max_length=128)]


class EventRecord(Struct, tag_field="type", gc=False, kw_only=True):
    """What all events have."""

    user_id: UserId
    event_time: str | int
    event_id: EventId | None = None
    item_id: str | None = None
    category: str | None = None
    properties: Raw = NULL


class BrowseRecord(EventRecord, tag="browse", gc=False, kw_only=True):
    """See events.Browse."""

    page: str | None = None
    query: str | None = None
    dwell_ms: Millis | None = None


class ItemRecord(Struct, gc=False, kw_only=True):
    """See events.Item."""

    item_id: str | None = None
    category: str | None = None
    quantity: Raw = NULL
    price: Raw = NULL


class PurchaseRecord(EventRecord, tag="purchase", gc=False, kw_only=True):
    """See events.Purchase."""

    amount: Raw
    currency: str | None = None
    order_id: str | None = None
    items: list[ItemRecord] | None = None


class InteractionRecord(EventRecord, tag="interaction", gc=False, kw_only=True):
    """See events.Interaction."""

    action: Action
    target_user_id: str | None = None
    rating: Raw = NULL
    duration_ms: Millis | None = None
    text: str | None = None


AnyRecord = BrowseRecord | PurchaseRecord | InteractionRecord
Decoder = msgspec.json.Decoder[AnyRecord]

_STRUCTS = {
    "browse": BrowseRecord,
    "purchase": PurchaseRecord,
    "interaction": InteractionRecord,
}


def decoder(implied: str | None) -> Decoder:
    """Decoder of a topic: of one type, whose tag may be left out, or of all three."""
    if implied is None:
        return msgspec.json.Decoder(AnyRecord)
    return msgspec.json.Decoder(_STRUCTS[implied])


def fields_of(record: type[Struct]) -> frozenset[str]:
    """Names that a struct reads, the tag included: all others are unknown fields."""
    return frozenset((*record.__struct_fields__, "type"))
