"""The output contract: what a document in Redis and on the `scores` topic holds. No torch.

`scoring.documents` writes the same JSON fast; a test holds both equal. contracts/values.json is
generated from here. Money is in major units of the deployment's unit; predicted numbers carry 5
significant digits, sums of the past are exact. Times are RFC 3339 in UTC.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Horizon = Annotated[str, Field(pattern=r"^d[1-9][0-9]*$", description="`d90` = 90 days")]
Probability = Annotated[float, Field(ge=0, le=1)]
Worth = Annotated[float, Field(ge=0)]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Evidence = Literal["cold", "thin", "enough"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class IfActive(_Model):
    """Quantiles of the value given that there is one."""

    p10: Worth
    p50: Worth
    p90: Worth


class HorizonValue(_Model):
    """What a user will be worth within one horizon from `as_of`."""

    expected: Worth = Field(description="E[max(0, net value in the horizon)]")
    p_active: Probability = Field(description="P(at least one positive value event in it)")
    p50: Worth = Field(description="quantile of the whole distribution: often 0")
    p90: Worth
    if_active: IfActive


class Previous(BaseModel):
    """The last document's expected values, brought to this `as_of` by its silence curve.

    So the difference to `values` is the event's doing. One number a horizon beside `revision`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Worth] = Field(init=False)

    revision: int = Field(ge=1)


class Silence(_Model):
    """How the value moves while the user stays silent: linear between knots, then the last."""

    days: list[float] = Field(description="days after `as_of`, ascending, the first 0")
    expected: dict[Horizon, list[Worth]]
    p_active: dict[Horizon, list[Probability]]


class History(_Model):
    """What has happened so far."""

    orders: int = Field(ge=0, description="positive value events")
    spent: float = Field(description="net of refunds")
    spent_gross: float
    refunds: int = Field(ge=0)
    refunded: float = Field(ge=0)
    first_event_at: Time | None
    last_event_at: Time | None
    last_order_at: Time | None


class Unit(_Model):
    """What values are counted in."""

    kind: Literal["money", "time", "count"]
    code: str


class Why(_Model):
    """The last event that a document counts, or why it was written without one."""

    type: Literal["browse", "purchase", "interaction", "silence", "generation", "erase", "recover"]
    event_id: str | None
    topic: str | None
    partition: int | None
    offset: int | None


class UserValue(_Model):
    """What a user is worth, as a function of time."""

    v: Literal[1] = Field(description="version of this document; fields may be added within one")
    user_id: str
    revision: int = Field(
        ge=1, description="grows with each document of a user, not by ones: keep the highest"
    )
    as_of: Time = Field(
        description="largest event time folded, or the time of a silence or generation update"
    )
    headline: Horizon = Field(description="horizon that ranks users")
    values: dict[Horizon, HorizonValue]
    previous: Previous | None
    silence: Silence
    history: History
    lifetime: dict[Horizon, Worth] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="expected net value from the first event to each horizon's age, of users"
        " younger than it: spent so far and what is expected in the days left, which grows in"
        " straight lines from horizon to horizon; absent for users older than the longest one."
        " A reader makes it anew of `values` at his time and `history`",
    )
    unit: Unit
    evidence: Evidence = Field(
        description="cold: no positive value event; thin: 1-2 of them or known < 30 days"
    )
    unseen: list[str] = Field(description="event types that this generation was not trained on")
    generation: str
    cause: Why


class ValueUpdate(UserValue):
    """One record of the `scores` topic: a user's new document, whose `cause` says why."""
