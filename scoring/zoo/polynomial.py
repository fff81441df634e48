"""Polynomial two-part values: the linear family over squares and products of chosen features.

A buyer's rate, silence and order value act together: long silence means little for a user who
orders twice a year and much for one who orders weekly. Linear regression cannot say that, the
products can. All features enter once, those of CHOSEN also as squares and products of two; the
products are centred and scaled again, so that one ridge fits all.

Cost: (F + 10 x 11 / 2) x 9 weights, about 1,100; a matrix product a query time; no carry.
Source: polynomial regression as in Hastie, Tibshirani & Friedman 2009, chapter 5; the two parts
in scoring.zoo.two_part. Shapes as there; P = products.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from scoring.generation import Generation, Manifest
from scoring.interface import Floats
from scoring.training.examples import Examples
from scoring.zoo import two_part
from scoring.zoo.two_part import Labels, Scaling, TwoPart

# What RFM models are made of: how often, how lately, how much. Not the ages: where all customers
# came at once, all are older at a query than any was in training, and products carry that far off
# (CDNOW, 13 weeks from week 26: nGini .44 with tenure and gaps, .60 without; retail .765, .766).
CHOSEN = (
    "orders", "spent", "log_mean_order_value", "since_order", "decayed_orders_1",
    "decayed_orders_2", "decayed_orders_3", "decayed_purchase_value_2", "orders_30d", "orders_90d",
)  # fmt: skip
RIDGE = 30.0  # in examples; of 30, 100, 300 and 1000 the best on early origins of Online Retail
LARGEST = np.float32(6.0)  # a scaled product is cut here, as the features are at 4


class Polynomial(TwoPart):
    """A trained generation: implements scoring.interface.ValueModel."""

    def __init__(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        super().__init__(manifest, files)
        self._first, self._second = self.arrays["first"], self.arrays["second"]
        self._mean, self._sd = self.arrays["product_mean"], self.arrays["product_sd"]

    def design(self, z: Floats) -> Floats:
        """(N, F) -> (N, F + P)."""
        made = z[:, self._first] * z[:, self._second]
        return expanded(z, made, self._mean, self._sd)


def load(manifest: Manifest, files: Mapping[str, bytes]) -> Polynomial:
    """Found by scoring.zoo.FAMILIES."""
    return Polynomial(manifest, files)


def expanded(z: Floats, products: Floats, mean: Floats, sd: Floats) -> Floats:
    """Features beside their scaled products."""
    scaled = np.clip((products - mean) / sd, -LARGEST, LARGEST)
    return np.concatenate([z, scaled], axis=1)


def train(examples: Examples, ridge: float = RIDGE, calibrated: bool = True) -> Generation:
    """Fit on all cut-offs, calibrated on the newest."""

    def fitted(manifest: Manifest, rows: Examples) -> Generation:
        keep = two_part.learnable(rows)
        arrays = fit(rows.features[:, keep], two_part.named(keep), Labels.of(rows), ridge)
        return two_part.generation(manifest, keep, arrays)

    return two_part.train("polynomial", examples, fitted, {"ridge": ridge}, calibrated)


def fit(
    x: Floats, names: tuple[str, ...], labels: Labels, ridge: float = RIDGE
) -> dict[str, Floats]:
    """The family's arrays from feature columns that vary (N, F), and their names."""
    scaling = Scaling.of(x)
    z = scaling(x)
    chosen = np.array([names.index(name) for name in CHOSEN if name in names], np.int32)
    left, right = np.triu_indices(len(chosen))
    first, second = chosen[left], chosen[right]
    products = z[:, first] * z[:, second]
    mean = products.mean(0, dtype=np.float64).astype(np.float32)
    sd = np.maximum(products.std(0, dtype=np.float64), 1e-6).astype(np.float32)
    parts = two_part.fit_parts(
        expanded(z, products, mean, sd),
        labels,
        partial(two_part.logistic, ridge=ridge),
        partial(two_part.level, ridge=ridge),
    )
    return {
        **scaling.arrays(),
        "first": first,
        "second": second,
        "product_mean": mean,
        "product_sd": sd,
        **parts,
    }
