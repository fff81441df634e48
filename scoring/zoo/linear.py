"""Linear two-part values: per increment a logistic regression of activity, a linear one of level.

The smallest family that learns: no carry, one matrix product to serve, closed-form or IRLS ridge
to fit, in numpy alone. It is what a sequence model has to beat on a business's own log, and the
fallback where there is no torch.

    q[k]      = P(value in increment k)                    logistic
    hazard[k] = P(first activity in k | none before)       logistic
    log value in k, given that there is one  ~  N(mu[k], sigma[k])

A feature x enters as (asinh(x / scale) - mean) / sd, within +-CLIP: linear near 0, logarithmic
for the large, and bounded, so that a user beyond all that training saw gets the value of the edge.
Source: the two-part model of Duan et al. 1983; increments as in scoring.heads.

Shapes: N examples, U users, K query times, F features, H horizons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from featurestore.features import FEATURES
from scoring import calibration
from scoring.errors import GenerationError, TooLittleData
from scoring.examples import Examples
from scoring.generation import Generation, Manifest, build
from scoring.heads import mixture, prediction
from scoring.interface import Floats, Prediction
from scoring.serving import weights

FILE = "weights.safetensors"
CLIP = np.float32(4.0)
RIDGE = 30.0  # in examples: standardised weights are pulled to 0 as by so many of them
SIGMA = (0.2, 2.0)
CAP_QUANTILE = 0.999  # of the positive increments: a longer mean is a wholesaler's accident

Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
OUTPUTS = 3  # q, hazard, mu


class Linear:
    """A trained generation: implements scoring.interface.ValueModel."""

    carry_size = 0

    def __init__(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        arrays = weights(files[FILE])
        position = {feature.name: i for i, feature in enumerate(FEATURES)}
        missing = [name for name in manifest.trained_features if name not in position]
        if missing:
            raise GenerationError(
                f"the generation reads features that this version does not make"
                f" ({', '.join(missing[:3])}): retrain, or run the version that it was made with"
            )
        self._columns = np.array([position[n] for n in manifest.trained_features], np.intp)
        self._scale, self._mean, self._sd = arrays["scale"], arrays["mean"], arrays["sd"]
        self._weights, self._bias = arrays["weights"], arrays["bias"]  # (F, 3H), (3H,)
        self._sigma, self._cap = arrays["sigma"], arrays["cap"]  # (H,), (H,)
        self._calibration = calibration.of(manifest.calibration)
        self.horizons_s = manifest.horizons_s

    def advance(self, carries: Floats, rows: npt.NDArray[np.int32], tokens: Floats) -> Floats:
        """There is no carry."""
        return carries.copy()

    def predict(self, carries: Floats, features: Floats) -> Prediction:
        """`features` (U, K, F) -> Prediction, calibrated."""
        users, knots, _ = features.shape
        x = features[..., self._columns].reshape(users * knots, len(self._columns))
        out = standardise(x, self._scale, self._mean, self._sd) @ self._weights + self._bias
        split = out.reshape(users, knots, OUTPUTS, len(self._sigma))
        q, hazard, mu = _sigmoid(split[:, :, 0]), _sigmoid(split[:, :, 1]), split[:, :, 2]
        sigma = np.broadcast_to(self._sigma, mu.shape)
        made = mixture(q, mu, sigma, self._cap, hazard)
        return prediction(made, *self._calibration(made.expected, made.p_active))


def load(manifest: Manifest, files: Mapping[str, bytes]) -> Linear:
    """Found by scoring.zoo.FAMILIES."""
    return Linear(manifest, files)


def standardise(x: Floats, scale: Floats, mean: Floats, sd: Floats) -> Floats:
    """Raw feature columns -> bounded, centred ones."""
    z = (np.arcsinh(x / scale) - mean) / sd
    out: Floats = np.clip(z, -CLIP, CLIP).astype(np.float32, copy=False)
    return out


def train(examples: Examples, ridge: float = RIDGE) -> Generation:
    """Fit on all cut-offs; calibrated on the newest one by a fit that has not seen it."""
    labels = Labels(examples.increments(), examples.between, examples.mask)
    manifest = Manifest(
        family="linear",
        horizons_s=examples.horizons_s,
        trained_until_ms=examples.clock_ms,
        log_start_ms=examples.log_start_ms,
        seen_types=examples.seen_types,
        params={"ridge": ridge},
    )
    whole = examples.window[examples.mask.all(1)]
    newest = int(whole.max()) if len(whole) else -1
    older = examples.window < newest
    if (examples.mask & older[:, None]).any(0).all():
        shown, aside = examples.rows(older), examples.rows(examples.window == newest)
        known = Labels(shown.increments(), shown.between, shown.mask)
        trial = generation(manifest, *fit(shown.features, known, ridge))
        none = np.zeros((len(aside), 0), np.float32)
        raw = trial.model.predict(none, aside.features[:, None])
        fitted = calibration.fit(
            raw.expected[:, 0], raw.p_active[:, 0], aside.value, aside.active, aside.mask
        )
        manifest = manifest.model_copy(update={"calibration": fitted.dump()})
    return generation(manifest, *fit(examples.features, labels, ridge))


@dataclass(frozen=True, slots=True)
class Labels:
    """Of N examples; `mask` marks what is mature."""

    increments: Doubles  # (N, H) value between horizon k - 1 and k, >= 0
    active: Mask  # (N, H) a positive value event in increment k
    mask: Mask  # (N, H)


def fit(features: Floats, labels: Labels, ridge: float = RIDGE) -> tuple[Mask, dict[str, Any]]:
    """(columns that vary (F,), arrays of the family) from examples (N, F)."""
    varies = features.max(0) > features.min(0) if len(features) else np.zeros(0, bool)
    if not varies.any():
        raise TooLittleData(
            "no feature varies among the examples: the log holds too few users or cut-offs"
        )
    x = features[:, varies]
    scale = np.maximum(np.abs(x).mean(0), 1e-6).astype(np.float32)
    bent = np.arcsinh(x / scale)
    mean = bent.mean(0, dtype=np.float64).astype(np.float32)
    sd = np.maximum(bent.std(0, dtype=np.float64), 1e-6).astype(np.float32)
    z = standardise(x, scale, mean, sd)
    horizons = labels.mask.shape[1]
    out = np.zeros((z.shape[1], OUTPUTS, horizons))
    bias, sigma, cap = np.zeros((OUTPUTS, horizons)), np.ones(horizons), np.ones(horizons)
    for k in range(horizons):
        mature = labels.mask[:, k]
        if not mature.any():
            raise TooLittleData(f"no mature label for horizon {k + 1}: the log is too short")
        # activity before k: only those without one tell the hazard
        fresh = mature & ~labels.active[:, :k].any(1)
        spent = labels.increments[:, k] > 0
        rows = np.flatnonzero(mature & spent)
        out[:, 0, k], bias[0, k] = logistic(z[mature], spent[mature], ridge)
        out[:, 1, k], bias[1, k] = logistic(z[fresh], labels.active[fresh, k], ridge)
        value = labels.increments[rows, k].astype(np.float64)
        out[:, 2, k], bias[2, k], sigma[k] = level(z[rows], value, ridge)
        cap[k] = max(float(np.quantile(value, CAP_QUANTILE)), 1e-3) if len(value) else 1.0
    flat = out.reshape(z.shape[1], OUTPUTS * horizons)
    arrays = {
        "scale": scale,
        "mean": mean,
        "sd": sd,
        "weights": flat.astype(np.float32),
        "bias": bias.reshape(-1).astype(np.float32),
        "sigma": sigma.astype(np.float32),
        "cap": cap.astype(np.float32),
    }
    return varies, arrays


def generation(manifest: Manifest, varies: Mask, arrays: dict[str, Any]) -> Generation:
    """Put fitted arrays into a generation; `manifest` says what they were fitted on."""
    names = tuple(feature.name for feature in FEATURES)
    trained = tuple(name for name, v in zip(names, varies.tolist(), strict=True) if v)
    manifest = manifest.model_copy(
        update={"family": "linear", "features": names, "trained_features": trained}
    )
    return build(manifest, {FILE: save(arrays)})


def logistic(z: Floats, y: Mask, ridge: float) -> tuple[Doubles, float]:
    """Weights and bias of a logistic regression: Newton's method with a ridge on the weights.

    >>> z = np.linspace(-2, 2, 200, dtype=np.float32)[:, None]
    >>> w, b = logistic(z, z[:, 0] > 0.1, 1.0)
    >>> bool(w[0] > 2 and -b / w[0] < 0.2)
    True
    """
    n, size = z.shape
    # half an event and half a non-event: the bias stays finite where all are alike
    rate = (float(y.sum()) + 0.5) / (n + 1.0)
    w, b = np.zeros(size), float(np.log(rate / (1 - rate)))
    if n == 0 or y.all() or not y.any():
        return w, b
    for _ in range(12):
        p = 1 / (1 + np.exp(-np.clip(z @ w.astype(np.float32) + b, -30, 30)))
        error = (p - y).astype(np.float32)
        weight = np.maximum(p * (1 - p), 1e-6).astype(np.float32)
        gradient = np.append(error @ z + ridge * w, error.sum(dtype=np.float64))
        hessian = np.empty((size + 1, size + 1))
        weighted = z * weight[:, None]
        hessian[:size, :size] = weighted.T @ z + ridge * np.eye(size)
        hessian[size, :size] = hessian[:size, size] = weighted.sum(0, dtype=np.float64)
        hessian[size, size] = weight.sum(dtype=np.float64) + 1e-3
        step = np.linalg.solve(hessian, gradient)
        step *= min(1.0, 3.0 / max(float(np.abs(step).max()), 1e-12))
        w, b = w - step[:size], b - float(step[size])
        if np.abs(step).max() < 1e-5:
            break
    return w, b


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
    rest = y - (z.astype(np.float64) @ w + bias)
    # a few examples cannot tell a spread: shrink it to 1 by ten of them
    spread = float(np.sqrt((np.sum(rest * rest) + 10.0) / (len(y) + 10.0)))
    return w, bias, float(np.clip(spread, *SIGMA))


def _sigmoid(x: Floats) -> Floats:
    return (1 / (1 + np.exp(-np.clip(x, -30, 30)))).astype(np.float32, copy=False)
