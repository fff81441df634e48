"""Settings of the models and of their registry."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class ModelSettings(BaseModel):
    """What is predicted, and where generations are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    horizons_days: tuple[int, ...] = Field((7, 30, 90), description="ascending; at least one")
    headline: str = Field("d90", validate_default=True, description="horizon that ranks users")
    # 37 and 97: what lies in a window of 30 or 90 days has left its last week bucket by then, and
    # values bend. With both, a reader's value and the model asked again differ by 1.6 % (CDNOW) and
    # 2.8 % (Online Retail) of the start at the 95th percentile of silent days; without 4 and 7 %.
    silence_days: tuple[float, ...] = Field(
        (0, 1, 3, 7, 10, 30, 37, 60, 90, 97, 180, 365),
        description="days of silence at which a document says the value; 0 first",
    )
    registry: str = Field(
        "store", description="`store` keeps generations in Redis; else an fsspec URL or a folder"
    )
    generation: str = Field(
        "", description="generation of a first start; empty: the registry's champion, or `prior`"
    )
    republish_share: float = Field(
        0.1, gt=0, le=1, description="silent users are published again after this relative change"
    )

    @field_validator("horizons_days")
    @classmethod
    def _ascends(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or value[0] < 1 or list(value) != sorted(set(value)):
            raise ValueError("must be whole days, at least one, each above the one before")
        return value

    @field_validator("headline")
    @classmethod
    def _is_predicted(cls, value: str, info: ValidationInfo) -> str:
        choices = [f"d{days}" for days in info.data.get("horizons_days", ())]
        if choices and value not in choices:
            raise ValueError(f"must name one of horizons_days: {', '.join(choices)}")
        return value

    @field_validator("silence_days")
    @classmethod
    def _begins_at_once(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or value[0] != 0 or list(value) != sorted(set(value)):
            raise ValueError("must begin at 0, and each be above the one before")
        return value
