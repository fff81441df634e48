"""Where a net starts, and how wide a net without a distribution spreads its values.

`start` sets the last layer to the base rates of the training rows, so that the first steps are
not spent on finding them. `settle` is for nets of the form `mean`, once they are trained: the log
of what came, less the log of mean / q, has a mean and a deviation among those who spent, and the
quantiles that are served are those of a lognormal there.

Shapes as in scoring.zoo.nets.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from scoring.settings import Loss
from scoring.training.batches import Data
from scoring.training.examples import Examples
from scoring.zoo.nets import SIGMA_MAX, SIGMA_MIN, Net

ONE = float(np.log(np.expm1(1.0)))  # what softplus makes 1 of


def start(net: Net, examples: Examples, loss: Loss) -> None:
    """At the base rates of the mature labels."""
    horizons = net.horizons
    value, mask = examples.increments(), examples.mask
    before = np.logical_or.accumulate(examples.between, axis=1)
    risk = mask & ~np.concatenate([np.zeros((len(before), 1), bool), before[:, :-1]], axis=1)
    own = examples.features[:, net.offset]
    with torch.no_grad():
        net.out.weight.mul_(0.3)
        bias = net.out.bias.view(-1, horizons)
        if loss == "binary":
            # how much is not learned, and must not wander with the other weights
            net.out.weight[horizons : 3 * horizons] = 0
        for h in range(horizons):
            paid = (value[:, h] > 0) & mask[:, h]
            bias[0, h] = _logit(examples.between[mask[:, h], h])
            bias[-1, h] = _logit(examples.between[risk[:, h], h])
            if net.form == "mean":
                bias[1, h] = ONE
                usual = float(value[mask[:, h], h].mean()) if mask[:, h].any() else 0.0
                net.unit[h] = max(usual, 1e-3)
            if paid.sum() > 1:
                gap = np.log(value[paid, h]) - own[paid]
                if net.form == "lognormal":
                    bias[1, h] = float(gap.mean())
                    bias[2, h] = float(np.log(np.expm1(np.clip(gap.std(), 0.1, 2.0))))
                # the largest order that a fold of 1,000 spenders would show, doubled
                net.log_cap[h] = float(np.log(2 * np.quantile(value[paid, h], 0.999)))


def deviations(examples: Examples) -> npt.NDArray[np.float32]:
    """(H,) of the mature increments."""
    value = examples.increments()
    found = [
        value[mature, h].std() if mature.any() else 1.0 for h, mature in enumerate(examples.mask.T)
    ]
    return np.maximum(found, 1e-3).astype(np.float32)


def settle(net: Net, data: Data) -> None:
    """Shift and spread of the values around mean / q, from the residuals of `data`."""
    with torch.no_grad():
        net.shift.zero_()
        net.spread.fill_(1.0)
        out, labels = data.outputs(net, np.unique(data.sequence))
        for h in range(net.horizons):
            kept = (labels.paid[:, h] * labels.mask[:, h]) > 0
            off = (labels.log_value[kept, h] - out.mu[kept, h]).double()
            count = len(off)
            # a few spenders cannot tell: as if ten more lay around a lognormal of sigma 1
            mean = (off.sum() - 5.0) / (count + 10.0)
            variance = (((off - mean).square()).sum() + 10.0) / (count + 10.0)
            net.shift[h] = float(mean)
            net.spread[h] = float(variance.sqrt().clamp(SIGMA_MIN, SIGMA_MAX))


def _logit(flags: npt.NDArray[np.bool_]) -> float:
    p = (float(flags.sum()) + 0.5) / (len(flags) + 1)
    return float(np.log(p / (1 - p)))
