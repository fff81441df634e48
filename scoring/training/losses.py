"""What a net is trained to make small: by the labels, and by a teacher.

By the labels, per increment between two horizons, on mature ones only: always
- cross-entropy of the hurdle (a positive value in the increment) and
- of the hazard: first activity in the increment among those not active before, which is the
  likelihood of `p_active` at all horizons at once;
and of the value, by the setting `loss`:
- `ziln`: negative log-likelihood of the lognormal where value came (arXiv:1912.07753);
- `mse`, `mae`, `huber` (1964; beyond one deviation, linear): of the increment's expectation in
  standard deviations of the training's increments;
- `tweedie`: deviance of the compound Poisson-gamma, power 1.5 (Jorgensen 1987), in means of them;
- `binary`: nothing: whether is learned, and how much is the user's own mean order value times what
  the training's spenders spent of theirs.
`mae` aims at the median, which is 0 for most users: it ranks, but its level is not to be used.

By a teacher: squared difference of the logarithms of the expected values, and cross-entropy of
P(active) with the teacher's probabilities, of each horizon that it speaks of (arXiv:1503.02531).

Sums over N rows; shapes as in scoring.training.batches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from scoring.settings import Loss
from scoring.training.batches import Labels
from scoring.zoo.nets import Form, Outputs, risks

POWER = 1.5
LEAST = 1e-6  # of a usual increment; keeps powers and logarithms of a mean finite
TEACHER_LEAST = 0.05  # of a teacher's mean value: smaller ones are as good as equal

Value = Callable[[Outputs, Labels, Tensor, Tensor], Tensor]  # outputs, labels, unit, deviation


def form(loss: Loss) -> Form:
    """What a net must say to be trained by a loss."""
    return "lognormal" if loss in ("ziln", "binary") else "mean"


def by_labels(loss: Loss, out: Outputs, labels: Labels, unit: Tensor, deviation: Tensor) -> Tensor:
    """Sum over the rows; `unit` and `deviation` (H,) of the training's increments."""
    hurdle = functional.binary_cross_entropy_with_logits(out.q, labels.between, reduction="none")
    first = functional.binary_cross_entropy_with_logits(
        out.hazard, labels.between, reduction="none"
    )
    each = hurdle + labels.at_risk * first
    value = _VALUE.get(loss)
    if value is not None:
        each = each + value(out, labels, unit, deviation)
    return (labels.mask * each).sum()


def by_teacher(out: Outputs, labels: Labels, usual: Tensor) -> Tensor:
    """Sum over the rows; `usual` (H,): the teacher's mean expected value."""
    floor = TEACHER_LEAST * usual
    apart = torch.log((out.mean.cumsum(-1) + floor) / (labels.teacher_expected + floor))
    risk = risks(out.hazard).clamp(min=1e-6)
    log_active = torch.log(-torch.expm1(-risk))
    crossed = labels.teacher_active * log_active - (1 - labels.teacher_active) * risk
    return (labels.taught * (apart.square() - crossed)).sum()


def _ziln(out: Outputs, labels: Labels, unit: Tensor, deviation: Tensor) -> Tensor:
    z = (labels.log_value - out.mu) / out.sigma
    return labels.paid * (torch.log(out.sigma) + z.square() / 2)


def _off(out: Outputs, labels: Labels, deviation: Tensor) -> Tensor:
    return (out.mean - labels.value) / deviation


def _mse(out: Outputs, labels: Labels, unit: Tensor, deviation: Tensor) -> Tensor:
    return _off(out, labels, deviation).square()


def _mae(out: Outputs, labels: Labels, unit: Tensor, deviation: Tensor) -> Tensor:
    return _off(out, labels, deviation).abs()


def _huber(out: Outputs, labels: Labels, unit: Tensor, deviation: Tensor) -> Tensor:
    off = _off(out, labels, deviation)
    return functional.huber_loss(off, torch.zeros_like(off), reduction="none")


def _tweedie(out: Outputs, labels: Labels, unit: Tensor, deviation: Tensor) -> Tensor:
    mean, value = out.mean / unit + LEAST, labels.value / unit
    return mean.pow(2 - POWER) / (2 - POWER) - value * mean.pow(1 - POWER) / (1 - POWER)


_VALUE: dict[Loss, Value] = {
    "ziln": _ziln,
    "mse": _mse,
    "mae": _mae,
    "huber": _huber,
    "tweedie": _tweedie,
}
