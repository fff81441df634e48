"""Support vector two-part values: a margin for activity, an insensitive tube for level.

Per part, weights w of a design z (N, D) minimise

    |w|^2 / 2 x ridge + sum over examples of their loss
    activity: c max(0, 1 - y (w z + b))^2 / 2,  y = +-1                 (support vector machine)
    level:    max(0, |log value - (w z + b)| - TUBE)^2 / 2              (support vector regression)

Both are smooth, so Newton's method finds them in the primal within some ten steps; only examples
inside the margin or outside the tube count in a step. c gives both classes the same weight in all:
where one user in fifty orders, the best margin would otherwise be that nobody does, and say nothing
(CDNOW, 13 weeks: nGini .635). A margin is no probability: Platt's map makes one of it, fitted to
the same rows (a few hundred weights against ten thousands of rows).
The squared losses are those of liblinear; a test holds the weights equal to scikit-learn's.

`svr` is linear. `svr_rff` has a Gaussian kernel beside the linear one, by random Fourier features:
cos(z @ omega + phase) with omega drawn from N(0, 1 / WIDTH^2), whose products approach the
kernel's. Serving costs the same whether ten examples taught it or a million, where an exact kernel
machine keeps every support vector; and MOST_ROWS examples are enough for so few weights.

Cost: 9 weights a feature; `svr_rff` FOURIER cosines and as many weights x 9 more; no carry.
Source: Cortes & Vapnik 1995; Drucker et al. 1997 (regression); Chapelle 2007, "Training a support
vector machine in the primal"; Platt 1999; Rahimi & Recht 2007, "Random features for large-scale
kernel machines". The two parts in scoring.zoo.two_part; shapes as there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from scoring.generation import Generation, Manifest
from scoring.interface import Floats
from scoring.training.examples import Examples
from scoring.zoo import two_part
from scoring.zoo.two_part import Doubles, Labels, Mask, Scaling, TwoPart

RIDGE = 30.0  # in examples
TUBE = 0.1  # of the log value: off by a tenth is not off
FOURIER = 256
MOST_ROWS = 60_000  # that a kernel machine is fitted to: 200 for each of its weights
WIDTH = 1.0  # of the Gaussian, in root mean squared distances between two examples
STEPS = 25


class Svr(TwoPart):
    """A trained generation: implements scoring.interface.ValueModel."""

    def __init__(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        super().__init__(manifest, files)
        # In doubles, as the weights are.
        self._omega = self.arrays.get("omega", np.zeros(0)).astype(np.float64)

    def design(self, z: Floats) -> Floats:
        """(N, F) -> (N, F), and (N, D) cosines beside them where there is a kernel."""
        if "omega" not in self.arrays:
            return z
        return with_cosines(z, self._omega, self.arrays["phase"])


def load(manifest: Manifest, files: Mapping[str, bytes]) -> Svr:
    """Found by scoring.zoo.FAMILIES."""
    return Svr(manifest, files)


def with_cosines(z: Floats, omega: npt.NDArray[np.floating], phase: Floats) -> Floats:
    """Features beside their random Fourier features, (N, F + D)."""
    turned = (z @ omega).astype(np.float32, copy=False)
    cosines = np.float32(np.sqrt(2)) * np.cos(turned + phase)
    return np.concatenate([z, cosines.astype(np.float32, copy=False)], axis=1)


def train(
    examples: Examples,
    fourier: int = 0,
    ridge: float = RIDGE,
    seed: int = 0,
    calibrated: bool = True,
) -> Generation:
    """Fit on all cut-offs, calibrated on the newest; `fourier` > 0 adds a Gaussian kernel."""

    def fitted(manifest: Manifest, rows: Examples) -> Generation:
        keep = two_part.learnable(rows)
        if fourier and len(rows) > MOST_ROWS:
            drawn = np.random.default_rng(seed).choice(len(rows), MOST_ROWS, replace=False)
            rows = rows.rows(np.sort(drawn))
        arrays = fit(rows.features[:, keep], Labels.of(rows), fourier, ridge, seed)
        return two_part.generation(manifest, keep, arrays)

    family = "svr_rff" if fourier else "svr"
    params = {"ridge": ridge, "tube": TUBE, "fourier": fourier, "seed": seed}
    return two_part.train(family, examples, fitted, params, calibrated)


def fit(
    x: Floats, labels: Labels, fourier: int = 0, ridge: float = RIDGE, seed: int = 0
) -> dict[str, Floats]:
    """The family's arrays from feature columns that vary (N, F)."""
    scaling = Scaling.of(x)
    z, kernel = scaling(x), {}
    if fourier:
        rng = np.random.default_rng(seed)
        # z is standardised: two examples are about sqrt(2 F) apart
        width = WIDTH * np.sqrt(2 * z.shape[1])
        kernel = {
            "omega": (rng.normal(size=(z.shape[1], fourier)) / width).astype(np.float32),
            "phase": rng.uniform(0, 2 * np.pi, fourier).astype(np.float32),
        }
        z = with_cosines(z, kernel["omega"], kernel["phase"])
    parts = two_part.fit_parts(
        z, labels, partial(classify, ridge=ridge), partial(regress, ridge=ridge)
    )
    return {**scaling.arrays(), **kernel, **parts}


def classify(z: Floats, y: Mask, ridge: float) -> tuple[Doubles, float]:
    """Weights and bias of the log odds: the margin, through Platt's map."""
    if y.all() or not y.any():
        return np.zeros(z.shape[1]), two_part.base_rate(y)
    w, b = machine(z, y, ridge)
    margin = (z @ w.astype(np.float32) + np.float32(b))[:, None]
    slope, shift = two_part.logistic(margin, y, 1e-3)
    return w * slope[0], b * float(slope[0]) + shift


def machine(z: Floats, y: Mask, ridge: float) -> tuple[Doubles, float]:
    """Support vector machine of squared hinge loss: weights and bias of the margin."""
    sign = np.where(y, np.float32(1), np.float32(-1))
    # as scikit-learn's "balanced"
    share = np.where(y, y.sum(), (~y).sum()) / len(y)
    counts = (0.5 / share).astype(np.float32)

    def pull(said: Floats) -> Floats:
        return np.where(sign * said < 1, said - sign, np.float32(0))

    return _newton(z, counts, pull, ridge)


def regress(z: Floats, value: Doubles, ridge: float) -> tuple[Doubles, float, float]:
    """Support vector regression of log value > 0: weights, bias and the residuals' sd."""
    if not len(value):
        return np.zeros(z.shape[1]), 0.0, 1.0
    y = np.log(value)
    w, b = tube(z, y, ridge)
    rest = y - (z.astype(np.float64) @ w + b)
    return w, b, two_part.spread(rest)


def tube(z: Floats, y: Doubles, ridge: float) -> tuple[Doubles, float]:
    """Support vector regression of squared epsilon-insensitive loss."""
    centre = float(y.mean())
    target, eps = (y - centre).astype(np.float32), np.float32(TUBE)

    def pull(said: Floats) -> Floats:
        off = said - target
        beyond: Floats = np.sign(off) * np.maximum(np.abs(off) - eps, 0)
        return beyond

    w, b = _newton(z, np.ones(len(z), np.float32), pull, ridge)
    return w, b + centre


def _newton(
    z: Floats, counts: Floats, pull: Callable[[Floats], Floats], ridge: float
) -> tuple[Doubles, float]:
    """Minimise sum of counts x pull^2 / 2 + ridge |w|^2 / 2; `pull`: how far each example errs.

    A loss of this kind is quadratic among the examples that err, so a step solves it for those
    that err now, and is halved until it helps.
    """
    size = z.shape[1]
    w = np.zeros(size + 1)  # the bias stands last

    def erring(w: Doubles) -> tuple[Floats, float]:
        far = pull(z @ w[:size].astype(np.float32) + np.float32(w[size]))
        erred = np.sum(counts * np.square(far), dtype=np.float64)
        return far, float(erred + ridge * (w[:size] @ w[:size])) / 2

    far, loss = erring(w)
    for _ in range(STEPS):
        errs = far != 0
        inside, count = z[errs], counts[errs]
        weighted = inside * count[:, None]
        hessian = np.empty((size + 1, size + 1))
        hessian[:size, :size] = weighted.T @ inside + ridge * np.eye(size)
        hessian[size, :size] = hessian[:size, size] = weighted.sum(0, dtype=np.float64)
        hessian[size, size] = count.sum(dtype=np.float64) + 1e-3
        counted = counts * far
        slope = np.append(counted @ z + ridge * w[:size], counted.sum(dtype=np.float64))
        step = np.linalg.solve(hessian, slope)
        for _ in range(10):
            tried, better = erring(w - step)
            if better <= loss:
                break
            step /= 2
        else:
            break
        gained = loss - better
        w, far, loss = w - step, tried, better
        if gained <= 1e-7 * loss:
            break
    return w[:size], float(w[size])
