"""Settings of the models and of their registry."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ModelSettings(BaseModel):
    """What is predicted, and where generations are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    horizons_days: tuple[int, ...] = Field((7, 30, 90), description="ascending; at least one")
    headline: str = Field("d90", description="horizon that ranks users")
    silence_days: tuple[float, ...] = Field(
        (0, 1, 3, 7, 14, 30, 60, 90, 180, 365),
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
    rows_per_call: int = Field(1024, ge=1, le=1024, description="rows of one onnxruntime call")
