"""ZILN DNN: two hidden layers on the feature vector, no carry.

The deep network of Wang, Liu & Miao 2019 (arXiv:1912.07753): hidden layers of 64 and 32, and the
zero-inflated lognormal as loss. Here with increments between horizons and a hazard, as every net
of this package has (scoring.zoo.nets), and on the features alone: what a sequence brings is what
the families with a carry do better than this one. Served by onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from scoring.generation import Manifest
from scoring.zoo.served_heads import GRAPH, OnFeatures

if TYPE_CHECKING:
    from scoring.settings import TrainingSettings
    from scoring.zoo.nets import Frame, Net


def load(manifest: Manifest, files: Mapping[str, bytes]) -> OnFeatures:
    """Found by scoring.zoo.FAMILIES."""
    return OnFeatures(manifest, files)


def new(frame: Frame, settings: TrainingSettings) -> Net:
    """An untrained net: found by scoring.zoo.NETS. torch is imported here, never by a worker."""
    from scoring.zoo.nets import Net

    net = Net(frame)
    net.add_head(0)
    return net


def export(net: Net) -> dict[str, bytes]:
    """The files of a generation."""
    from scoring.zoo.graphs import graph

    return {GRAPH: graph(net.eval(), "dnn")}
