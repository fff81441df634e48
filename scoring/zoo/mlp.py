"""The textbook's baseline: a three-layer perceptron on recency, frequency and monetary value.

Layers of 128, 64 and one output per increment between horizons, ReLU, mean squared error, Adam,
100 full-batch epochs, no other regularisation than the best held-out epoch: the recipe found in
tutorials of customer value, kept so that what everything else brings can be seen. It takes the
settings `rate`, `held_out`, `least_orders`, `cutoff_dropout` and `seed`, RECIPE for the rest.

A squared error knows neither whether nor how surely, so the other parts of a Prediction come from
beside it (scoring.zoo.nets, form `mean`): q and hazard are logistic regressions on the last hidden
layer, which they do not teach (`apart`), so that what ranks users is the squared error's alone;
quantiles are of a lognormal around mean / q as wide as the training's residuals. The output passes
a softplus, as a value is not negative. Source: RFM (Hughes 1994); the perceptron and its training
by backpropagation (Rumelhart, Hinton & Williams 1986).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.features import FEATURES
from scoring.generation import Manifest
from scoring.zoo.served_heads import GRAPH, OnFeatures

if TYPE_CHECKING:
    from scoring.settings import TrainingSettings
    from scoring.zoo.nets import Frame, Net

# recency, frequency, monetary value, and for how long they have been counted
COLUMNS = ("since_order", "orders", "spent", "order_tenure")
HIDDEN = (128, 64)
RECIPE: dict[str, Any] = {
    "loss": "mse",
    "optimizer": "adam",
    "epochs": 100,
    "patience": 100,
    "users_per_batch": 1 << 40,
    "decay": 0.0,
    "l1": 0.0,
    "dropout": 0.0,
}


def load(manifest: Manifest, files: Mapping[str, bytes]) -> OnFeatures:
    """Found by scoring.zoo.FAMILIES."""
    return OnFeatures(manifest, files)


def new(frame: Frame, settings: TrainingSettings) -> Net:
    """An untrained net: found by scoring.zoo.NETS. torch is imported here, never by a worker."""
    from scoring.zoo.nets import Net, Scaling

    read = np.array([feature.name in COLUMNS for feature in FEATURES])
    scale = np.where(read, frame.features.scale, 0).astype(np.float32)
    net = Net(replace(frame, features=Scaling(frame.features.mean, scale)))
    net.add_head(0, HIDDEN, apart=True)
    return net


def export(net: Net) -> dict[str, bytes]:
    """The files of a generation."""
    from scoring.zoo.graphs import graph

    return {GRAPH: graph(net.eval(), "mlp")}
