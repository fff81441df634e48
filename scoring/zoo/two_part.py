"""What the two-part families share: which rows tell each part, their scaling, and the way back.

A two-part model (Duan et al. 1983) says, per increment k between two horizons,

    q[k]      = P(value in increment k)
    hazard[k] = P(first activity in k | none before)
    log value in k, given that there is one  ~  N(mu[k], sigma[k])

and `heads.mixture` makes values of them. `Increment` holds the rows from which each part is
learned. `TwoPart` is the served form of every family whose parts are a product of one matrix: a
row of features is bent and centred by `Scaling`, the family makes a design of it, and q and hazard
are the sigmoid of design @ weights + bias. What a family adds is its design and its fit.

Shapes: N examples, U users, K query times, F features, D columns of the design, H horizons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from featurestore.features import FEATURES
from scoring import calibration, inputs
from scoring.errors import GenerationError, TooLittleData
from scoring.generation import Generation, Manifest, build
from scoring.heads import mixture, prediction
from scoring.interface import Floats, Prediction
from scoring.outliers import bounds
from scoring.serving import weights
from scoring.training.examples import Examples
from scoring.zoo.seen import DRIFTING, moved_by, unseen

FILE = "weights.safetensors"
CLIP = np.float32(4.0)
EDGE = 0.001  # share of the examples beyond the edge, on either side
SIGMA = (0.2, 2.0)
CAP_QUANTILE = 0.999  # of the positive increments: a longer mean is a wholesaler's accident
OUTPUTS = 3  # q, hazard, mu
ROUNDS = 50  # of Newton's method; most logs need fewer than ten
SHORTEST = 1e-6  # share of a step below which none helps
NAMES = tuple(feature.name for feature in FEATURES)

Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Labels:
    """Of N examples; `mask` marks what is mature."""

    increments: Doubles  # (N, H) value between horizon k - 1 and k, >= 0
    active: Mask  # (N, H) a positive value event in increment k
    mask: Mask  # (N, H)

    @classmethod
    def of(cls, examples: Examples) -> Labels:
        """The labels of example rows."""
        return cls(examples.increments(), examples.between, examples.mask)


@dataclass(frozen=True, slots=True)
class Increment:
    """What the parts of one increment are learned from; masks over the N examples."""

    mature: Mask  # tell q, by `spent`
    spent: Mask  # value in it
    fresh: Mask  # mature and not active before: tell the hazard, by `active`
    active: Mask
    paid: Mask  # mature and spent: tell the level, by `value`
    value: Doubles  # of the paid rows
    cap: float  # bounds the mean

    @classmethod
    def all(cls, labels: Labels) -> list[Increment]:
        """One for each horizon."""
        made = []
        for k in range(labels.mask.shape[1]):
            mature = labels.mask[:, k]
            if not mature.any():
                raise TooLittleData(f"no mature label for horizon {k + 1}: the log is too short")
            spent = labels.increments[:, k] > 0
            paid = mature & spent
            value = labels.increments[paid, k].astype(np.float64)
            cap = float(np.quantile(value, CAP_QUANTILE)) if len(value) else 1.0
            fresh = mature & ~labels.active[:, :k].any(1)
            made.append(cls(mature, spent, fresh, labels.active[:, k], paid, value, max(cap, 1e-3)))
        return made


@dataclass(frozen=True, slots=True)
class Scaling:
    """Raw columns -> bounded, centred ones: (asinh(x / scale) - mean) / sd, low to high.

    Linear near 0, logarithmic for the large. A user beyond what training saw (but for one in a
    thousand on each side) gets the value of the edge: where all customers came at once, every one
    of them is older at a new query than any was in training (CDNOW, nGini of the linear family with
    the edges and without: 30 days from day 213 .662 and .657, 13 weeks from week 26 .655 and .652).
    """

    scale: Floats
    mean: Floats
    sd: Floats
    low: Floats
    high: Floats

    @classmethod
    def of(cls, x: Floats) -> Scaling:
        """Fitted to (N, F)."""
        scale = np.maximum(np.abs(x).mean(0, dtype=np.float64), 1e-6).astype(np.float32)
        bent = np.arcsinh(x / scale)
        mean = bent.mean(0, dtype=np.float64).astype(np.float32)
        sd = np.maximum(bent.std(0, dtype=np.float64), 1e-6).astype(np.float32)
        low, high = np.quantile((bent - mean) / sd, (EDGE, 1 - EDGE), axis=0)
        return cls(scale, mean, sd, _within(low), _within(high))

    def __call__(self, x: Floats) -> Floats:
        """(N, F) -> (N, F)."""
        z = (np.arcsinh(x / self.scale) - self.mean) / self.sd
        out: Floats = np.clip(z, self.low, self.high).astype(np.float32, copy=False)
        return out

    def bounds(self) -> tuple[Doubles, Doubles]:
        """(F,) lowest and (F,) highest value read, in the units of the columns."""
        scale, mean, sd = (a.astype(np.float64) for a in (self.scale, self.mean, self.sd))
        return np.sinh(self.low * sd + mean) * scale, np.sinh(self.high * sd + mean) * scale

    def arrays(self) -> dict[str, Floats]:
        """For the family's file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _within(edges: Doubles) -> Floats:
    return np.clip(edges, -CLIP, CLIP).astype(np.float32)


class TwoPart:
    """A trained generation of one matrix: implements scoring.interface.ValueModel."""

    carry_size = 0

    def __init__(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        self.arrays = weights(files[FILE])
        self._columns = columns(manifest)
        self._scaling = Scaling(*(self.arrays[field.name] for field in fields(Scaling)))
        # Added up in doubles: in floats a sum depends on the size of the batch, and an exponential
        # makes more of it than the suite allows (polynomial, 9 of 40 drawn samples).
        self._weights = self.arrays["weights"].astype(np.float64)  # (D, 3H)
        self._bias = self.arrays["bias"]  # (3H,)
        self._sigma, self._cap = self.arrays["sigma"], self.arrays["cap"]  # (H,), (H,)
        self._calibration = calibration.of(manifest.calibration)
        self.horizons_s = manifest.horizons_s

    def design(self, z: Floats) -> Floats:
        """(N, F) scaled features -> (N, D)."""
        return z

    def advance(self, carries: Floats, rows: npt.NDArray[np.int32], tokens: Floats) -> Floats:
        """There is no carry."""
        return carries.copy()

    def predict(self, carries: Floats, features: Floats) -> Prediction:
        """`features` (U, K, F) -> Prediction, calibrated."""
        users, knots, _ = features.shape
        x = features[..., self._columns].reshape(users * knots, len(self._columns))
        product = self.design(self._scaling(x)).astype(np.float64) @ self._weights
        out = product.astype(np.float32) + self._bias
        split = out.reshape(users, knots, OUTPUTS, len(self._sigma))
        q, hazard, mu = sigmoid(split[:, :, 0]), sigmoid(split[:, :, 1]), split[:, :, 2]
        sigma = np.broadcast_to(self._sigma, mu.shape)
        made = mixture(q, mu, sigma, self._cap, hazard)
        return prediction(made, *self._calibration(made.expected, made.p_active))


def columns(manifest: Manifest) -> npt.NDArray[np.intp]:
    """Where the features that a generation was trained on stand among those that it reads."""
    position = {name: i for i, name in enumerate(manifest.features or NAMES)}
    missing = [name for name in manifest.trained_features if name not in position]
    if missing:
        raise GenerationError(
            f"the generation reads features that this version does not make"
            f" ({', '.join(missing[:3])}): retrain, or run the version that it was made with"
        )
    return np.array([position[name] for name in manifest.trained_features], np.intp)


def learnable(examples: Examples) -> Mask:
    """(F,) columns that vary, and that neither an unseen type nor the log's age alone can move."""
    silent = moved_by(unseen(examples.seen_types)) | DRIFTING
    kept: Mask = varies(examples.features) & np.array([name not in silent for name in NAMES])
    return kept


def varies(features: Floats) -> Mask:
    """(F,) columns that are not the same in all examples (N, F)."""
    found: Mask = (
        features.max(0) > features.min(0) if len(features) else np.zeros(features.shape[1], bool)
    )
    if not found.any():
        raise TooLittleData(
            "no feature varies among the examples: the log holds too few users or cut-offs"
        )
    return found


def named(keep: Mask) -> tuple[str, ...]:
    """Names of the columns marked in (F,)."""
    return tuple(name for name, kept in zip(NAMES, keep.tolist(), strict=True) if kept)


def generation(
    manifest: Manifest, keep: Mask, arrays: Mapping[str, npt.NDArray[Any]]
) -> Generation:
    """Put fitted arrays into a generation; `manifest` says of which family, fitted on what."""
    manifest = with_bounds(
        manifest.model_copy(update={"features": NAMES, "trained_features": named(keep)}), arrays
    )
    return build(manifest, {FILE: save(dict(arrays))})


def with_bounds(manifest: Manifest, arrays: Mapping[str, npt.NDArray[Any]]) -> Manifest:
    """The bounds of its scaled features in its params, for scoring.outliers."""
    scaling = Scaling(*(arrays[field.name] for field in fields(Scaling)))
    found = bounds(manifest.trained_features, *scaling.bounds())
    return manifest.model_copy(update={"params": {**manifest.params, **found}})


Fit = Callable[[Manifest, Examples], Generation]


def train(
    family: str,
    examples: Examples,
    fit: Fit,
    params: Mapping[str, Any],
    calibrated: bool = True,
) -> Generation:
    """Fit on all cut-offs; calibrated on the newest one by a fit that has not seen it.

    A teacher needs no calibration, which doubles the work: the net that learns gets its own.
    """
    manifest = Manifest(
        family=family,
        horizons_s=examples.horizons_s,
        trained_until_ms=examples.clock_ms,
        log_start_ms=examples.log_start_ms,
        seen_types=examples.seen_types,
        params=dict(params),
    )
    whole = examples.window[examples.mask.all(1)]
    newest = int(whole.max()) if len(whole) else -1
    older = examples.window < newest
    if calibrated and (examples.mask & older[:, None]).any(0).all():
        trial = fit(manifest, examples.rows(older))
        aside = examples.rows(examples.window == newest)
        none = np.zeros((len(aside), 0), np.float32)
        raw = trial.model.predict(none, inputs.of_rows(trial, aside)[:, None])
        fitted = calibration.fit(
            raw.expected[:, 0], raw.p_active[:, 0], aside.value, aside.active, aside.mask
        )
        manifest = manifest.model_copy(update={"calibration": fitted.dump()})
    return fit(manifest, examples)


def sigmoid(x: Floats) -> Floats:
    """Logistic function, without an overflow on the way."""
    return (1 / (1 + np.exp(-np.clip(x, -30, 30)))).astype(np.float32, copy=False)


# ── ridge fits of one part: weights (D,), bias ───────────────────────────────────────────────

Classify = Callable[[Floats, Mask], tuple[Doubles, float]]  # weights and bias of log odds
Regress = Callable[[Floats, Doubles], tuple[Doubles, float, float]]  # and the residual sd


def fit_parts(
    design: Floats, labels: Labels, classify: Classify, regress: Regress
) -> dict[str, Floats]:
    """All parts on (N, D): the arrays that TwoPart reads beside its scaling."""
    parts = Increment.all(labels)
    horizons = len(parts)
    out = np.zeros((design.shape[1], OUTPUTS, horizons))
    bias, sigma = np.zeros((OUTPUTS, horizons)), np.ones(horizons)
    for k, part in enumerate(parts):
        out[:, 0, k], bias[0, k] = classify(design[part.mature], part.spent[part.mature])
        out[:, 1, k], bias[1, k] = classify(design[part.fresh], part.active[part.fresh])
        out[:, 2, k], bias[2, k], sigma[k] = regress(design[part.paid], part.value)
    flat = out.reshape(design.shape[1], OUTPUTS * horizons)
    return {
        "weights": flat.astype(np.float32),
        "bias": bias.reshape(-1).astype(np.float32),
        "sigma": sigma.astype(np.float32),
        "cap": np.array([part.cap for part in parts], np.float32),
    }


def base_rate(y: Mask) -> float:
    """Log odds of a share, as if half an event more of each kind: finite where all are alike."""
    rate = (float(y.sum()) + 0.5) / (len(y) + 1.0)
    return float(np.log(rate / (1 - rate)))


def logistic(z: Floats, y: Mask, ridge: float) -> tuple[Doubles, float]:
    """Weights and bias of a logistic regression: Newton's method with a ridge on the weights.

    A step is halved until the loss falls: undamped, steps on skewed, collinear columns overshoot
    and never come back (Bitcoin OTC: nGini -.067, damped .895). Hence float64, too.

    >>> z = np.linspace(-2, 2, 200, dtype=np.float32)[:, None]
    >>> w, b = logistic(z, z[:, 0] > 0.1, 1.0)
    >>> bool(w[0] > 2 and -b / w[0] < 0.2)
    True
    """
    size = z.shape[1]
    w, b = np.zeros(size), base_rate(y)
    if y.all() or not y.any():
        return w, b
    x = z.astype(np.float64)
    now = logistic_loss(x, y, ridge, w, b)
    for _ in range(ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(x @ w + b, -30, 30)))
        error = p - y
        weight = np.maximum(p * (1 - p), 1e-6)
        gradient = np.append(error @ x + ridge * w, error.sum())
        weighted = x * weight[:, None]
        hessian = np.empty((size + 1, size + 1))
        hessian[:size, :size] = weighted.T @ x + ridge * np.eye(size)
        hessian[size, :size] = hessian[:size, size] = weighted.sum(0)
        hessian[size, size] = weight.sum() + 1e-3
        step = np.linalg.solve(hessian, gradient)
        slope, share = float(gradient @ step), 1.0
        while share > SHORTEST:
            to, bias = w - share * step[:size], b - share * float(step[size])
            loss = logistic_loss(x, y, ridge, to, bias)
            if loss <= now - 1e-4 * share * slope:
                break
            share /= 2
        else:  # no step helps any more: this is the minimum, as far as floats can tell
            break
        gain, w, b, now = now - loss, to, bias, loss
        if gain < 1e-6 * now:
            break
    return w, b


def logistic_loss(x: Doubles, y: Mask, ridge: float, w: Doubles, b: float) -> float:
    """What `logistic` makes small: negative log likelihood and the ridge of the weights."""
    said = x @ w + b
    return float(np.logaddexp(0, said).sum() - said[y].sum() + ridge / 2 * (w @ w))


def level(z: Floats, value: Doubles, ridge: float) -> tuple[Doubles, float, float]:
    """Weights, bias and residual sd of log value > 0: ridge regression in closed form."""
    if not len(value):
        return np.zeros(z.shape[1]), 0.0, 1.0
    y = np.log(value)
    centre = z.mean(0, dtype=np.float64)
    x = z - centre.astype(np.float32)
    gram = (x.T @ x).astype(np.float64) + ridge * np.eye(z.shape[1])
    w = np.linalg.solve(gram, x.T.astype(np.float64) @ (y - y.mean()))
    bias = float(y.mean() - centre @ w)
    return w, bias, spread(y - (z.astype(np.float64) @ w + bias))


def spread(rest: Doubles) -> float:
    """Sd of residuals, shrunk to 1 by ten of them, since a few examples cannot tell it."""
    return float(np.clip(np.sqrt((np.sum(rest * rest) + 10.0) / (len(rest) + 10.0)), *SIGMA))
