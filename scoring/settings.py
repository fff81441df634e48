"""Settings of the models, of their training and of their registry. Loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Optimizer = Literal["sgd", "adam", "adamw"]
Loss = Literal["ziln", "mse", "mae", "huber", "tweedie", "binary"]


class ModelSettings(BaseModel):
    """What is predicted, and where generations are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    horizons_days: tuple[int, ...] = Field((7, 30, 90), description="ascending; at least one")
    headline: str = Field("d90", validate_default=True, description="horizon that ranks users")
    # Closest between days 10 and 60, where the value of the next 7 days rises most and then turns.
    # Chosen on the odd half of the users of five sets, nets of several seeds and prefixes: on the
    # other half a reader's value and the model asked again differ by at most 2.6 % of the start at
    # the 95th percentile of silent days, at any horizon. See docs/adr/0010-nets-read-no-windows.md.
    silence_days: tuple[float, ...] = Field(
        (0, 1, 2, 4, 7, 11, 15, 20, 26, 33, 40, 50, 67, 95, 140, 230, 450, 1300),
        description="days of silence at which a document says the value; 0 first",
    )
    registry: str = Field(
        "store",
        description="`store` keeps generations in Redis; else an fsspec URL or a folder",
        repr=False,  # a URL may hold a login
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


class TrainingSettings(BaseModel):
    """How the model is trained. The defaults train 24,000 users x 8 cut-offs within minutes.

    `livevalue tune` searches for better ones on a log of one's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str = Field(
        "mingru", description="what retrain trains; `livevalue evaluate --models list` shows them"
    )
    loss: Loss = Field(
        "ziln",
        description="of the value: ziln, mse, mae, huber, tweedie; binary learns only whether",
    )
    optimizer: Optimizer = Field(
        "adamw", description="sgd (Nesterov, wants a rate of .01 to .1), adam or adamw"
    )
    width: int = Field(
        32, ge=2, le=256, description="of what reads the events; past 32 a minGRU gains nothing"
    )
    window: int = Field(
        8, ge=1, le=256, description="last events that a layer of the transformer looks at"
    )
    epochs: int | None = Field(
        None, ge=1, description="at most; none: some 1,200 steps of the optimizer, 12 to 160 epochs"
    )
    patience: int = Field(4, ge=1, description="epochs without a better held-out loss, at least")
    users_per_batch: int = Field(256, ge=1, description="sequences in one step of the optimizer")
    rate: float = Field(1e-3, gt=0, description="peak learning rate")
    decay: float = Field(1e-2, ge=0, description="weight decay")
    l1: float = Field(0.0, ge=0, description="weight of the sum of the weights' magnitudes")
    dropout: float = Field(0.2, ge=0, lt=1, description="of the head's first hidden layer")
    event_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of a user's events that an epoch's carry passes over",
    )
    time_jitter_days: float = Field(
        0.0, ge=0, description="standard deviation by which an epoch's carry moves events"
    )
    cutoff_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of a user's cut-offs that an epoch passes over"
    )
    held_out: float = Field(0.15, gt=0, lt=1, description="share of users for early stopping")
    least_orders: int = Field(200, ge=1, description="active rows below which nothing is trained")
    teachers: tuple[str, ...] = Field(
        (),
        description="families whose mean the served net learns from, fitted without the user:"
        " gbm, graph, linear, polynomial, svr, svr_rff, or a net; [] is none",
    )
    teacher_seeds: int = Field(
        1, ge=1, description="seeds with which each teacher is fitted; their mean is its word"
    )
    teacher_weight: float = Field(
        0.5, ge=0, le=1, description="share of a teacher in the loss, where a net has one"
    )
    seed: int = Field(0, description="of the first weights, the order of users and who is held out")
