"""Which example rows train, which stop the training, and which calibrate.

Shapes: N rows, as in scoring.training.examples. Loads no torch.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from scoring.settings import TrainingSettings
from scoring.training.examples import Examples

Rows = npt.NDArray[np.bool_]


def held_out(examples: Examples, settings: TrainingSettings) -> Rows:
    """(N,) rows of users kept from training, by a hash of the name: the next retrain's too.

    Labels of neighbouring cut-offs overlap, so a later cut-off of a user who is trained on would
    be no test. Small logs hold out more, up to 2,000 users or 40 %: a gate needs users.
    """
    count = max(1, len(examples.users))
    share = max(settings.held_out, min(0.4, 2000 / count))
    salt = f"{settings.seed}:"
    drawn = np.array([zlib.crc32((salt + user).encode()) for user in examples.users])
    return drawn[examples.user] < share * (1 << 32)


def newest(examples: Examples, windows: int) -> Rows:
    """(N,) rows of the newest cut-offs at which each horizon is mature: what to calibrate on."""
    keep = np.zeros(len(examples), bool)
    for mature in examples.mask.T:
        keep |= np.isin(examples.window, np.unique(examples.window[mature])[-windows:])
    return keep


def late(examples: Examples) -> Rows:
    """(N,) rows of the newest half of the cut-offs that have any mature label."""
    mature = np.unique(examples.window[examples.mask.any(axis=1)])
    newer = mature[len(mature) // 2 :]
    return np.isin(examples.window, newer) & examples.mask.any(axis=1)
