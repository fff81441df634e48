"""What a generation costs: parameters, bytes of carry, and microseconds of one core.

Parameters and carry are facts of the files. Times are measured here and now, so they differ from
machine to machine and stand in no manifest, whose hash must be the same everywhere: on 1,024 users
at once, as a busy worker scores them, one step each and then a document each (the value now and at
every knot of silence). Processor time of one thread, as a worker has, so that other work on the
machine does not count; the median of a few runs. The fold, the store and the log come on top.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featurestore.features import FEATURES
from featurestore.vector import TOKENS
from scoring.checks import Sample
from scoring.generation import Generation
from scoring.serving import weights
from scoring.settings import ModelSettings

USERS, RUNS = 1024, 5


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one generation."""

    parameters: int | None  # None: of a version that did not count them
    carry_bytes: int  # per user, beside the state
    us_per_event: float  # of a step of the carry; 0 without one
    us_per_user: float  # of a value now and at every knot of silence

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def parameters(generation: Generation) -> int | None:
    """As the manifest counts them, or those of the files where that is all there is."""
    counted = generation.manifest.params.get("parameters")
    if counted is not None:
        return int(counted)
    if any(name.endswith(".onnx") for name in generation.files):
        return None
    files = [data for name, data in generation.files.items() if name.endswith(".safetensors")]
    arrays = [array for data in files for array in weights(data).values()]
    return sum(math.prod(array.shape) for array in arrays)


def measure(generation: Generation, settings: ModelSettings | None = None) -> Cost:
    """Takes a fraction of a second; `settings` says at how many knots values are asked for."""
    model = generation.model
    knots = len((settings or ModelSettings()).silence_days)
    columns = len(generation.manifest.features) or len(FEATURES)
    sample = Sample.drawn(USERS, knots, columns, len(TOKENS), steps=1)
    rows = np.arange(USERS, dtype=np.int32)
    carries = np.zeros((USERS, model.carry_size), np.float32)
    step = _us(lambda: model.advance(carries, rows, sample.tokens)) if model.carry_size else 0.0
    return Cost(
        parameters(generation),
        carries.itemsize * model.carry_size,
        step,
        _us(lambda: model.predict(carries, sample.features)),
    )


def _us(call: Callable[[], object]) -> float:
    """Median per user; the first call, which makes the session, is not counted."""
    took = []
    # drawn input is wilder than users are
    with _one_thread(), np.errstate(all="ignore"):
        call()
        for _ in range(RUNS):
            began = time.process_time()
            call()
            took.append(time.process_time() - began)
    return round(float(np.median(took)) / USERS * 1e6, 3)


def _one_thread() -> AbstractContextManager[object]:
    """For the linear algebra, where the extra `train` is there; more would count as more time."""
    try:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
    except ImportError:
        return nullcontext()
    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits
