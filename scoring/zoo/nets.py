"""What every trained net is, in torch: some reading of the steps, features, and the heads.

A family gives `sequence`: what it makes of a user after each of his steps (the *readout*, which is
its carry or a part of it; none for a family on features alone). The rest is the same for all: two
hidden layers over [readout, standardised query-time features], then per increment between two
horizons a hurdle q (a positive value in it), the value, and a hazard (first activity in it).
The value has one of two forms:
- `lognormal`: (mu, sigma) given that there is one (ZILN, Wang, Liu & Miao 2019, arXiv:1912.07753).
  mu starts at the log of the user's own shrunken mean order value with a learned weight: what one
  order is worth is known per user, so the net learns how many there will be;
- `mean`: its expectation, unit x softplus(level), for losses that know no distribution. Quantiles
  then come from a lognormal around mean / q whose spread is that of the training's residuals
  (scoring.training.base_rates.settle).

Shapes: S steps of all users end to end, N rows (a user at one query time), T tokens, F features,
R readout, H horizons. `ranks` (S,) number each user's steps from 0. Never imported by a worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

CLIP = 6.0  # standardised features are cut here: a query far outside training stays sane
SIGMA_MIN, SIGMA_MAX = 0.05, 2.5
HIDDEN = (64, 32)
TINY = 1e-9  # of a mean whose logarithm is taken

Form = Literal["lognormal", "mean"]


@dataclass(frozen=True, slots=True)
class Scaling:
    """Standardisation of one set of columns; scale 0 encodes a column constant in training."""

    mean: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]  # 1 / standard deviation, or 0

    @classmethod
    def of(
        cls, columns: npt.NDArray[np.float32], silent: npt.NDArray[np.bool_] | None = None
    ) -> Scaling:
        """Fitted to (N, F); columns in `silent` (F,) are encoded as 0 like constant ones."""
        wide = columns.astype(np.float64)
        mean, sd = wide.mean(axis=0), wide.std(axis=0)
        varies = np.ptp(columns, axis=0) > 1e-6 * np.maximum(1.0, np.abs(mean))
        if silent is not None:
            varies &= ~silent
        scale = np.where(varies, 1 / np.maximum(sd, 1e-9), 0.0)
        return cls(mean.astype(np.float32), scale.astype(np.float32))


@dataclass(frozen=True, slots=True)
class Frame:
    """What a net is made to read and to say."""

    tokens: Scaling
    features: Scaling
    horizons: int
    offset: int  # column of the features that holds the log of the mean order value
    static: int = 0  # how many columns, the first ones, are the same at all query times of a user
    form: Form = "lognormal"


class Outputs(NamedTuple):
    """Of each increment, (N, H) each."""

    q: Tensor  # logit of a positive value in it
    mu: Tensor  # of the lognormal of that value
    sigma: Tensor
    hazard: Tensor  # logit of the first activity in it, given none before
    mean: Tensor  # expected value in it


class Net(nn.Module):
    """A family's net. A subclass makes what reads its steps, then calls `add_head`."""

    width = 0  # of the part that reads the steps

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.form, self.horizons = frame.form, frame.horizons
        self.offset, self.static = frame.offset, frame.static
        self.readout = 0
        self.apart = False
        self.log_cap: Tensor
        self.token_mean: Tensor
        self.token_scale: Tensor
        self.feature_mean: Tensor
        self.feature_scale: Tensor
        self.unit: Tensor
        self.shift: Tensor
        self.spread: Tensor
        horizons = frame.horizons
        self.register_buffer("log_cap", torch.full((horizons,), 20.0))
        for name, scaling in (("token", frame.tokens), ("feature", frame.features)):
            self.register_buffer(f"{name}_mean", torch.from_numpy(scaling.mean.copy()))
            self.register_buffer(f"{name}_scale", torch.from_numpy(scaling.scale.copy()))
        # of the form `mean`: a usual increment, and where values lie around mean / q
        self.register_buffer("unit", torch.ones(horizons))
        self.register_buffer("shift", torch.full((horizons,), -0.5))
        self.register_buffer("spread", torch.ones(horizons))

    def add_head(
        self, readout: int, hidden: tuple[int, int] = HIDDEN, *, apart: bool = False
    ) -> None:
        """The layers after the readout.

        apart: q and hazard read the last hidden layer and teach it nothing.
        """
        self.readout, self.apart = readout, apart
        first, second = hidden
        self.by_features = nn.Linear(len(self.feature_mean), first)
        self.by_carry = nn.Linear(readout, first, bias=False) if readout else None
        self.dropout = nn.Dropout(0.0)
        self.hidden = nn.Linear(first, second)
        parts = 4 if self.form == "lognormal" else 3
        self.out = nn.Linear(second, parts * self.horizons)
        self.offset_weight = nn.Parameter(torch.ones(self.horizons))

    def sequence(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """Readouts after every step, each user from nothing: (S, T), (S,) -> (S, R)."""
        return torch.zeros(len(tokens), self.readout)

    def head(self, readout: Tensor, features: Tensor) -> Outputs:
        """(N, R), (N, F) -> Outputs."""
        x = ((features - self.feature_mean) * self.feature_scale).clamp(-CLIP, CLIP)
        x = self.by_features(x)
        if self.by_carry is not None:
            x = x + self.by_carry(readout)
        x = self.dropout(torch.relu(x))
        x = torch.relu(self.hidden(x))
        out = self.out(x)
        if self.form == "lognormal":
            q, mu, sigma, hazard = out.chunk(4, dim=-1)
            mu = mu + self.offset_weight * features[:, self.offset, None]
            sigma = (functional.softplus(sigma) + SIGMA_MIN).clamp(max=SIGMA_MAX)
            level = torch.exp(torch.minimum(mu + sigma.square() / 2, self.log_cap))
            return Outputs(q, mu, sigma, hazard, torch.sigmoid(q) * level)
        q, level, hazard = out.chunk(3, dim=-1)
        if self.apart:
            q, _, hazard = self.out(x.detach()).chunk(3, dim=-1)
        mean = torch.minimum(self.unit * functional.softplus(level), self.log_cap.exp())
        # -log of the sigmoid is softplus of the opposite
        mu = torch.log(mean + TINY) + functional.softplus(-q) + self.shift
        return Outputs(q, mu, self.spread.expand_as(mu), hazard, mean)

    def values(self, readout: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Expected value and P(active), (N, H) each: what the exported graph gives."""
        made = self.head(readout, features)
        return made.mean.cumsum(-1), -torch.expm1(-risks(made.hazard))


def risks(hazard: Tensor) -> Tensor:
    """(N, H) -log P(not active within the horizon)."""
    return functional.softplus(hazard).cumsum(-1)
