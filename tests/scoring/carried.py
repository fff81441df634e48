"""The carries of example rows, made by the served steps of a generation. Loads no torch."""

from __future__ import annotations

import numpy as np

from scoring.generation import Generation
from scoring.interface import Floats
from scoring.training.examples import Examples


def carry_rows(made: Generation, rows: Examples) -> Floats:
    """(N, C) each row's carry: from zeros, by the steps that its user had taken."""
    n = len(rows)
    zero = np.zeros((n, made.model.carry_size), np.float32)
    if not made.model.carry_size:
        return zero
    begin = rows.starts[rows.sequence]
    count = rows.position
    first = np.cumsum(count) - count
    at = np.arange(count.sum()) + np.repeat(begin - first, count)
    who = np.repeat(np.arange(n, dtype=np.int32), count)
    return made.model.advance(zero, who, rows.tokens[at])
