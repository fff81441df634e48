"""The start of a deployment: shrunken rate x shrunken order value, with nothing trained.

A user's orders are a Poisson process whose rate is gamma distributed over users, and the chance
that he is still there falls with his silence like that of Pareto/NBD. With a and b for the shape
and rate of his posterior, and D(h) for the days until horizon h in which he is still there,

    a = R0 + decayed orders            b = A0 + decayed days known
    D(h) = integral over t in (0, h) of (1 + (silence + t) / FADE_DAYS) ** -FADE
    expected orders = a / b x D(h)     P(active) = 1 - (b / (b + D(h))) ** a

So values fall while a user is silent, and an order lifts them twice. The constants are of no
business in particular: a round compromise between a record shop with many single orders (CDNOW up
to June 1997: level 1.4 times too high) and a wholesaler with regulars (Online Retail up to May
2011: half of what came), weak enough that a few orders outweigh them. `evidence` says how little
such a value knows; the first retrain replaces it.

Source: gamma-Poisson and Pareto dropout as in Schmittlein, Morrison & Colombo 1987.
Shapes: U users, K query times, H horizons.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featurestore.features import FEATURES
from scoring.generation import Generation, Manifest, build
from scoring.heads import mixture, prediction
from scoring.interface import Floats, Prediction

if TYPE_CHECKING:
    from scoring.settings import ModelSettings

R0 = 0.3  # orders that a user is given before any
A0 = 60.0  # days in which he made them: one in 200 days
FADE_DAYS, FADE = 90.0, 0.5  # after 90 days of silence 71 % are still there, after a year 44 %
HALF_LIFE_DAYS = 120.0  # of the third decayed count; forgetting days as orders are forgotten
SIGMA = 0.9  # of the log of the value, given that there is one
CAP = 1e12
DAY_S = 86_400

# What is read of the features, all log1p but the log order value.
READS = ("decayed_orders_3", "tenure", "since_event", "log_mean_order_value")
LARGEST = 25.0  # logarithms beyond it are not data; exp stays far from the end of float32

Doubles = npt.NDArray[np.float64]


class Prior:
    """The untrained generation: implements scoring.interface.ValueModel."""

    carry_size = 0

    def __init__(self, manifest: Manifest) -> None:
        names = [feature.name for feature in FEATURES]
        self._columns = np.array([names.index(name) for name in READS], np.intp)
        self.horizons_s = manifest.horizons_s
        self._days = np.array([0, *manifest.horizons_s], np.float64) / DAY_S

    def advance(self, carries: Floats, rows: npt.NDArray[np.int32], tokens: Floats) -> Floats:
        """There is no carry."""
        return carries.copy()

    def predict(self, carries: Floats, features: Floats) -> Prediction:
        """`features` (U, K, F) -> Prediction."""
        read = features[..., self._columns].astype(np.float64)  # (U, K, 4)
        orders, known, silence = np.moveaxis(
            np.expm1(np.clip(read[..., :3], 0, LARGEST))[..., None], 2, 0
        )
        worth = np.exp(np.clip(read[..., 3:], -LARGEST, LARGEST))
        a = R0 + orders
        forgets = HALF_LIFE_DAYS / np.log(2)
        b = A0 + forgets * -np.expm1(-known / forgets)
        there = _still_there(silence, self._days)  # (U, K, H + 1)
        between = np.diff(there, axis=-1)
        # P(no order) over an increment, and over it given none before
        q = -np.expm1(-a * np.log1p(between / b))
        hazard = -np.expm1(-a * np.log1p(between / (b + there[..., :-1])))
        value = np.log(a / b * between * worth) - np.log(np.maximum(q, 1e-300))
        mu = np.where(q > 0, value, 0) - SIGMA * SIGMA / 2
        return prediction(
            mixture(
                q.astype(np.float32),
                mu.astype(np.float32),
                np.full(mu.shape, SIGMA, np.float32),
                CAP,
                hazard.astype(np.float32),
            )
        )


def _still_there(silence: Doubles, days: Doubles) -> Doubles:
    """Days until each of `days` in which a user silent for so long is still there, expected.

    >>> gone, fresh = _still_there(np.array([[365.0], [0.0]]), np.array([30.0]))[:, 0]
    >>> bool(gone < fresh / 2 and fresh < 30)
    True
    """
    power = 1 - FADE
    began = (1 + silence / FADE_DAYS) ** power
    # the difference of two large powers, kept exact for the long silent
    growth = np.expm1(power * np.log1p(days / (FADE_DAYS + silence)))
    out: Doubles = FADE_DAYS / power * began * growth
    return out


def generation(settings: ModelSettings) -> Generation:
    """The `prior` generation for these horizons; the same settings give the same id."""
    manifest = Manifest(
        family="prior",
        horizons_s=tuple(days * DAY_S for days in settings.horizons_days),
        features=tuple(feature.name for feature in FEATURES),
        trained_features=READS,
        params={"r0": R0, "a0": A0, "fade_days": FADE_DAYS, "fade": FADE, "sigma": SIGMA},
    )
    return build(manifest, {})


def load(manifest: Manifest, files: Mapping[str, bytes]) -> Prior:
    """Found by scoring.zoo.FAMILIES."""
    return Prior(manifest)
