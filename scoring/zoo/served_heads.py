"""The heads of a trained net as they are served: onnxruntime, then calibration.

`Heads` turns [readout, features] into a Prediction; `OnFeatures` is the whole served form of a
family that reads no steps. The graph is made by scoring.zoo.graphs. Shapes as in scoring.interface.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from scoring import calibration
from scoring.errors import GenerationError
from scoring.generation import Manifest
from scoring.heads import Mixture, prediction, totals
from scoring.interface import Floats, Prediction
from scoring.serving import Lazy, run_chunked

GRAPH = "model.onnx"


def file(files: Mapping[str, bytes], name: str) -> bytes:
    """One file of a generation; the error says what to do where it lacks."""
    if name not in files:
        raise GenerationError(f"the generation lacks {name}: publish it again, or promote another")
    return files[name]


class Heads:
    """Called with features, and the readout where the graph has one."""

    def __init__(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        self._graph = Lazy(file(files, GRAPH))
        self._calibration = calibration.of(manifest.calibration)

    def __call__(self, features: Floats, readout: Floats | None = None) -> Prediction:
        """`features` (U, K, F), `readout` (U, R) -> Prediction, calibrated."""
        inputs = {"features": features}
        if readout is not None:
            inputs["carry"] = readout
        expected, p_active, q, mu, sigma = run_chunked(self._graph.get(), inputs, features.shape[1])
        made = Mixture(expected, p_active, *totals(q, mu, sigma))
        return prediction(made, *self._calibration(expected, p_active))


class OnFeatures:
    """A trained generation without a carry: implements scoring.interface.ValueModel."""

    carry_size = 0

    def __init__(self, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        self._heads = Heads(manifest, files)
        self.horizons_s = manifest.horizons_s

    def advance(self, carries: Floats, rows: npt.NDArray[np.int32], tokens: Floats) -> Floats:
        """There is no carry."""
        return carries.copy()

    def predict(self, carries: Floats, features: Floats) -> Prediction:
        """`features` (U, K, F) -> Prediction."""
        return self._heads(features)
