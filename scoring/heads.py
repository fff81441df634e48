"""From increments to values: hurdle-lognormal mixtures with ordered horizons, in numpy.

A model gives, per increment k between two horizons, the probability q of value in it, and the
lognormal (mu, sigma) of that value. Increments are non-negative, so sums of them are ordered by
horizon; the mean of each is capped, since exp(mu + sigma^2 / 2) of a few wholesalers would swing
every total. `hazard` is P(first activity in k | none before): its own output with its own loss,
as activity in neighbouring increments is far from independent; without one, q stands in.

Shapes: U users, K query times, H horizons (= increments). Money in major units.
Source: ZILN, Wang, Liu & Miao 2019, arXiv:1912.07753; increments, arXiv:2208.13358. The torch
twin of `mixture` is in the families that train; a test holds the exported graph equal to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scoring.interface import Floats, Prediction

Z90 = 1.2815515655446004  # standard normal quantile of .9
_TINY = np.float32(1e-12)
_MOST = 80.0  # logarithm of the largest quantile: what a model contradicts itself in stays finite


@dataclass(frozen=True, slots=True)
class Mixture:
    """What `mixture` knows of U users: means at every knot, the spread at knot 0."""

    expected: Floats  # (U, K, H)
    p_active: Floats  # (U, K, H)
    log_mean: Floats  # (U, H) of the horizon's total given that it is positive, at knot 0
    log_sd: Floats  # (U, H)


def capped_mean(mu: Floats, sigma: Floats, cap: Floats | float) -> Floats:
    """min(mean of the lognormal, cap), without an overflow on the way.

    >>> mu, sigma = np.array([0, 99], np.float32), np.array([0, 9], np.float32)
    >>> capped_mean(mu, sigma, 10.0).round(3).tolist()
    [1.0, 10.0]
    """
    capped = np.minimum(mu + np.float32(0.5) * sigma * sigma, np.log(np.asarray(cap, np.float32)))
    out: Floats = np.exp(capped, dtype=np.float32)
    return out


def mixture(
    q: Floats,
    mu: Floats,
    sigma: Floats,
    cap: Floats | float,
    hazard: Floats | None = None,
) -> Mixture:
    """Increments (U, K, H) -> means and activity at all knots, spread of the total at knot 0.

    `cap` bounds an increment's mean; a number or (H,).
    """
    expected = np.cumsum(q * capped_mean(mu, sigma, cap), axis=-1, dtype=np.float32)
    p_active = 1 - np.cumprod(1 - (q if hazard is None else hazard), axis=-1, dtype=np.float32)
    log_mean, log_sd = totals(q[:, 0], mu[:, 0], sigma[:, 0])
    return Mixture(expected, p_active.astype(np.float32, copy=False), log_mean, log_sd)


def totals(q: Floats, mu: Floats, sigma: Floats) -> tuple[Floats, Floats]:
    """Lognormal of each horizon's total given that it is positive; all arguments (U, H).

    Adds one increment at a time: the total so far and the new one are each absent or lognormal,
    so what is positive is a mix of "old only", "new only" and "both" (their sum as a lognormal of
    the same mean and variance, Fenton 1960). The mix is matched in the moments of the logarithm:
    exact for the first horizon and wherever one part dominates, and a heavy tail (sigma > 1) does
    not drag the median along, as matching the raw second moment would.
    """
    chance, centre = q.astype(np.float64), mu.astype(np.float64)
    width = np.square(sigma.astype(np.float64))
    out_mean, out_sd = np.empty_like(centre), np.empty_like(centre)
    active, mean, spread = chance[:, 0], centre[:, 0], width[:, 0]
    out_mean[:, 0], out_sd[:, 0] = mean, np.sqrt(spread)
    for k in range(1, q.shape[1]):
        new_q, new_mean, new_var = chance[:, k], centre[:, k], width[:, k]
        both_mean, both_var = _sum_of_two(mean, spread, new_mean, new_var)
        parts = (
            (active * (1 - new_q), mean, spread),
            ((1 - active) * new_q, new_mean, new_var),
            (active * new_q, both_mean, both_var),
        )
        total = np.maximum(sum(w for w, _, _ in parts), 1e-30)
        first = sum(w * m for w, m, _ in parts) / total
        second = sum(w * (v + np.square(m - first)) for w, m, v in parts) / total
        nothing = total <= 1e-30
        mean = np.where(nothing, mean, first)
        spread = np.where(nothing, spread, second)
        active = 1 - (1 - active) * (1 - new_q)
        out_mean[:, k], out_sd[:, k] = mean, np.sqrt(spread)
    return out_mean.astype(np.float32), out_sd.astype(np.float32)


def _sum_of_two(
    m1: npt.NDArray[np.float64],
    v1: npt.NDArray[np.float64],
    m2: npt.NDArray[np.float64],
    v2: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Fenton's lognormal for the sum of two independent ones, computed on a safe scale."""
    top = np.maximum(m1, m2)
    e1, e2 = np.exp(m1 - top + v1 / 2), np.exp(m2 - top + v2 / 2)
    mean = e1 + e2
    variance = np.expm1(np.minimum(v1, 50.0)) * e1 * e1 + np.expm1(np.minimum(v2, 50.0)) * e2 * e2
    var = np.log1p(variance / (mean * mean))
    return top + np.log(mean) - var / 2, var


def prediction(
    made: Mixture, level: Floats | None = None, p_active: Floats | None = None
) -> Prediction:
    """Calibrated mixture -> Prediction, quantiles inverted from what is served.

    `level` (H,) multiplies the expected values, `p_active` (U, K, H) replaces the activity. The
    value given activity moves with their ratio, so that expected = p_active x mean if active
    still holds.
    """
    expected, active = made.expected, made.p_active if p_active is None else p_active
    if level is not None:
        expected = np.maximum.accumulate(expected * level, axis=-1)
    if p_active is not None:
        active = np.maximum.accumulate(np.clip(active, 0, 1), axis=-1)
    log_mean = made.log_mean
    if level is not None or p_active is not None:
        moved = (expected[:, 0] * made.p_active[:, 0] + _TINY) / (
            made.expected[:, 0] * active[:, 0] + _TINY
        )
        log_mean = log_mean + np.log(moved)
    p = active[:, 0]
    if_active = np.exp(
        np.minimum(
            log_mean[..., None] + made.log_sd[..., None] * np.array([-Z90, 0, Z90], np.float32),
            np.float32(_MOST),
        )
    )
    p50 = np.maximum.accumulate(mixture_quantile(0.5, p, log_mean, made.log_sd), axis=-1)
    p90 = np.maximum.accumulate(mixture_quantile(0.9, p, log_mean, made.log_sd), axis=-1)
    as32 = np.float32
    return Prediction(
        expected.astype(as32, copy=False),
        active.astype(as32, copy=False),
        p50.astype(as32, copy=False),
        p90.astype(as32, copy=False),
        if_active.astype(as32, copy=False),
    )


def mixture_quantile(a: float, p: Floats, log_mean: Floats, log_sd: Floats) -> Floats:
    """Quantile a of "0 with 1 - p, else lognormal"; all (U, H)."""
    out = np.zeros(p.shape, np.float32)
    inside = p > 1 - a
    u = (a - 1 + p[inside].astype(np.float64)) / p[inside]
    logarithm = log_mean[inside] + log_sd[inside] * normal_quantile(u)
    out[inside] = np.exp(np.minimum(logarithm, _MOST))
    return out


# Coefficients of P. J. Acklam's rational approximation, relative error below 1.2e-9.
_A = (-39.69683028665376, 220.9460984245205, -275.9285104469687, 138.357751867269,
      -30.66479806614716, 2.506628277459239)  # fmt: skip
_B = (-54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972,
      -13.28068155288572, 1.0)  # fmt: skip
_C = (-0.007784894002430293, -0.3223964580411365, -2.400758277161838, -2.549732539343734,
      4.374664141464968, 2.938163982698783)  # fmt: skip
_D = (0.007784695709041462, 0.3224671290700398, 2.445134137142996, 3.754408661907416, 1.0)


def normal_quantile(u: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Inverse of the standard normal distribution function; scipy stays out of the worker.

    >>> normal_quantile(np.array([0.5, 0.9])).round(6).tolist()
    [0.0, 1.281552]
    """
    u = np.clip(u, 1e-12, 1 - 1e-12)
    centre = u - 0.5
    r = centre * centre
    out = np.polyval(_A, r) * centre / np.polyval(_B, r)
    outer = np.abs(centre) > 0.47575
    tail = np.sqrt(-2 * np.log(np.minimum(u[outer], 1 - u[outer])))
    out[outer] = -np.sign(centre[outer]) * np.polyval(_C, tail) / np.polyval(_D, tail)
    result: npt.NDArray[np.float64] = out
    return result
