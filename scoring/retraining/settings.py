"""Settings of retrain and of its gate: how much is learned from, what a candidate must reach."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

# Where a population stability index says "drifted" (scoring.retraining.drift).
DRIFTED = 0.25


class RetrainSettings(BaseModel):
    """How much a retrain learns from, and what the gate asks of a candidate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cutoffs: int = Field(12, ge=2, description="rolling cut-offs that are trained on, at most")
    most_users: int = Field(50_000, ge=100, description="beyond, a part of the users is drawn")
    most_events: int = Field(
        3_000_000,
        ge=1_000,
        description="beyond, so few users are drawn that about so many events are of them",
    )
    windows: int = Field(3, ge=1, description="newest mature cut-offs, to calibrate and validate")
    origins: int = Field(
        5, ge=0, description="rolling origins at which recipes are refitted; fewer on a short log"
    )
    step_days: int = Field(30, ge=1, description="between two origins")
    judged_days: int = Field(
        30, ge=1, description="origins are judged by the longest horizon up to this"
    )
    origin_users: int = Field(
        20_000, ge=100, description="beyond, the refits at origins learn from a part of the users"
    )
    origin_teachers: bool = Field(
        False,
        description="refits at origins have the recipe's teachers, too, which takes many times as"
        " long; without, they have them where the recipes differ in them",
    )
    confidence: float = Field(
        0.9, gt=0, lt=1, description="of the interval of the nGini difference, two-sided"
    )
    ngini_low: float = Field(-0.005, description="least lower bound of the nGini difference")
    log_bias: float = Field(0.05, ge=0, description="how much further off the level may be")
    draws: int = Field(400, ge=50, description="of the bootstrap, users with replacement")
    corrector_helps: int = Field(
        4, ge=1, description="origins at which the level corrector must help, to be kept"
    )
    flat_prices: bool = Field(
        False, description="train though every order has the same value; else that is refused"
    )
    psi: float = Field(
        DRIFTED,
        ge=0,
        description="population stability index of a column beyond which users have drifted:"
        " `retrain --if-drifted`, and the alarm of `audit --drift`",
    )
    seed: int = Field(0, description="of the bootstrap")
