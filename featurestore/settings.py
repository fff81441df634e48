"""Settings of the fold and of the store. Whatever changes a folded state is in the fingerprint.

Nothing here reads the environment: streams/settings.py composes the sections.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ValueRule(_Section):
    """One row of the value table: events of this type (and action) are worth weight x field."""

    type: Literal["browse", "purchase", "interaction"] = Field(description="type of the event")
    action: str | None = Field(None, description="only this action (interaction); none = any")
    field: Literal["amount", "duration_ms", "dwell_ms", "rating", "one"] = Field(
        "amount", description="field of the event that is counted; `one` counts the event itself"
    )
    weight: Decimal = Field(
        Decimal(1), description="multiplied with the field; 0.3 = a 30 % margin"
    )


class DatedRate(_Section):
    """From `since` on, one unit of `currency` is worth `rate` of the deployment's currency."""

    currency: str = Field(pattern=r"^[A-Z]{3}$", description="ISO 4217 code")
    since: str = Field(description="date, YYYY-MM-DD, UTC")
    rate: Decimal = Field(gt=0, description="units of the deployment's currency")


class ValueSettings(_Section):
    """What counts as value."""

    kind: Literal["money", "time", "count"] = Field("money", description="what a value is")
    currency: str = Field("GBP", description="ISO 4217 code, or the unit's name when not money")
    rules: tuple[ValueRule, ...] = Field(
        (ValueRule(type="purchase"),), description="the value table: what an event is worth"
    )
    rates: tuple[DatedRate, ...] = Field((), description="other currencies are rejected without")


class FeatureSettings(_Section):
    """How events are folded."""

    lateness: timedelta = Field(timedelta(hours=72), description="allowed lateness of a source")
    lateness_by_topic: dict[str, timedelta] = Field({}, description="exceptions, by topic")
    skew: timedelta = Field(
        timedelta(minutes=10), description="how far an event time may exceed its record timestamp"
    )
    half_lives_days: tuple[float, float, float] = Field(
        (14.0, 45.0, 120.0), description="of decayed counts and decayed value"
    )
    session_gap: timedelta = Field(
        timedelta(minutes=30), description="a longer pause begins another visit"
    )
    carry_actions: tuple[str, ...] = Field(
        ("cart_add", "wishlist"), description="actions that step the carry beside value events"
    )
    order_value_prior: float = Field(20.0, gt=0, description="mean order value of a new user")
    derive_ids: bool = Field(False, description="derive a missing event_id from the content")
    social: bool = Field(
        False,
        description="fold whom users address (target_user_id): degree and activity of edges; see "
        "[ADR 8](adr/0008-features-beyond-rfm.md)",
    )
    interests: bool = Field(
        False,
        description="fold what events are about (category, query, text), as hashed words; see "
        "[ADR 8](adr/0008-features-beyond-rfm.md)",
    )
    tail_cap: int = Field(256, ge=1, description="recent events kept per user and source")
    ids_cap: int = Field(4096, ge=1, description="identities remembered per user and source")
    ring_cap: int = Field(64, ge=1, description="value events remembered per user and source")


class StoreSettings(_Section):
    """Where values live."""

    url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="redis://, rediss:// (TLS) or unix:// URL; redis+sentinel:// and "
        "redis+cluster:// (see [security](security.md) and [operations](operations.md#redis))",
    )
    password_file: str = Field(
        "", description="file whose first line is the password, where the URL holds none"
    )
    ca_file: str = Field("", description="PEM file of Redis's authority; none: the system's")
    cert_file: str = Field("", description="PEM file of our certificate, where Redis wants one")
    key_file: str = Field("", description="PEM file of its key; none: it is in `cert_file`")
    name: str = Field("main", pattern=r"^[a-z0-9-]{1,32}$", description="store of a first start")
    timeout_s: float = Field(5.0, gt=0, description="of one call")
    max_commit_mib: float = Field(8.0, gt=0, le=64, description="a larger batch is cut")
