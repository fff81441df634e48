"""Serving an exported graph: onnxruntime on one thread, at most 1,024 rows a call.

A worker is one process per core, so a session gets one thread and does not spin. Larger calls
gain nothing and fall out of the cache (measured: 1,024 rows are the best of 256 to 16,384).
Only numpy, onnxruntime and safetensors are loaded here, never torch.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped]
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from scoring.errors import GenerationError
from scoring.interface import Floats

ROWS_PER_CALL = 1024


def session(graph: bytes) -> onnxruntime.InferenceSession:
    """A one-threaded session over the bytes of an ONNX graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own family, and RuntimeError
        raise GenerationError(
            f"the generation's graph cannot be loaded ({error}): publish it again"
        ) from error


def run_chunked(
    graph: onnxruntime.InferenceSession,
    inputs: Mapping[str, npt.NDArray[Any]],
    rows_each: int = 1,
    rows_per_call: int = ROWS_PER_CALL,
) -> list[Floats]:
    """All outputs for inputs that share their first axis, at most `rows_per_call` rows a call.

    rows_each: how many rows of the graph one entry of the first axis makes (its query times).
    """
    n = len(next(iter(inputs.values())))
    step = max(1, rows_per_call // rows_each)
    if n <= step:
        return list(graph.run(None, dict(inputs)))
    parts: list[list[Floats]] = []
    for start in range(0, n, step):
        part = {name: value[start : start + step] for name, value in inputs.items()}
        parts.append(graph.run(None, part))
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def weights(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """Arrays of a safetensors file."""
    try:
        return dict(load_safetensors(data))
    except SafetensorError as error:
        raise GenerationError(
            f"the generation's weights cannot be read ({error}): publish it again"
        ) from error


class Lazy:
    """A session that is made in the process and thread that first needs it (fork-safe)."""

    def __init__(self, graph: bytes) -> None:
        self._graph = graph
        self._made: onnxruntime.InferenceSession | None = None
        self._lock = threading.Lock()

    def get(self) -> onnxruntime.InferenceSession:
        """The session."""
        if self._made is None:
            with self._lock:
                if self._made is None:
                    self._made = session(self._graph)
        return self._made
