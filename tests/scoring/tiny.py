"""A small minGRU generation with random weights, for tests that need one but no training."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is in the extra `train`")

from scoring.generation import Generation, Manifest, build  # noqa: E402
from scoring.zoo.mingru_net import Net, export  # noqa: E402
from scoring.zoo.nets import Frame, Scaling  # noqa: E402

HORIZONS_S = (7 * 86_400, 30 * 86_400, 90 * 86_400)


def tiny(
    bias: float = 0.0, tokens: int = 3, features: int = 5, width: int = 4, offset: int = 2
) -> Generation:
    """Same arguments, same bytes."""
    torch.manual_seed(0)
    r = np.random.default_rng(0)
    frame = Frame(
        Scaling.of(r.normal(size=(50, tokens)).astype(np.float32)),
        Scaling.of(r.normal(size=(50, features)).astype(np.float32)),
        len(HORIZONS_S),
        offset=offset,
    )
    net = Net(frame, width)
    with torch.no_grad():
        net.out.bias.add_(bias)
    manifest = Manifest(family="mingru", horizons_s=HORIZONS_S, seen_types=("purchase",))
    return build(manifest, export(net))
