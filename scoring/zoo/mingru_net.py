"""The minGRU net in torch: what is trained, and its export. Never imported by a worker.

Layers as in mingru.py (Feng et al. 2024, arXiv:2410.01201); the heads are those of
scoring.zoo.nets.

Shapes: B users, S steps of all users end to end, T tokens, W width. `ranks` (S,) number each
user's steps from 0. `step` and `sequence` are held equal by test, in values and gradients.
"""

from __future__ import annotations

import numpy as np
import torch
from safetensors.numpy import save as save_safetensors
from torch import Tensor, nn

from scoring.settings import TrainingSettings
from scoring.zoo.graphs import array, graph
from scoring.zoo.mingru import WEIGHTS
from scoring.zoo.nets import Frame
from scoring.zoo.nets import Net as Base
from scoring.zoo.served_heads import GRAPH


class Net(Base):
    """Two minGRU layers and the heads."""

    def __init__(self, frame: Frame, width: int = 32) -> None:
        super().__init__(frame)
        self.width = width
        self.cell1 = nn.Linear(len(frame.tokens.mean), 2 * width)
        self.cell2 = nn.Linear(width, 2 * width)
        self.add_head(2 * width)

    def step(self, carry: Tensor, token: Tensor) -> Tensor:
        """One step of a batch of users: (B, 2W), (B, T) -> (B, 2W). The definition."""
        x = (token - self.token_mean) * self.token_scale
        states = []
        for layer, cell in enumerate((self.cell1, self.cell2)):
            h = carry[:, layer * self.width : (layer + 1) * self.width]
            z, c = cell(x).chunk(2, dim=-1)
            z = torch.sigmoid(z)
            x = (1 - z) * h + z * c
            states.append(x)
        return torch.cat(states, dim=-1)

    def sequence(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """Carries after every step, from zero carries: (S, T), (S,) -> (S, 2W). In parallel."""
        x = (tokens - self.token_mean) * self.token_scale
        states = []
        for cell in (self.cell1, self.cell2):
            z, c = cell(x).chunk(2, dim=-1)
            z = torch.sigmoid(z)
            x = scan(1 - z, z * c, ranks)
            states.append(x)
        return torch.cat(states, dim=-1)


def scan(a: Tensor, b: Tensor, ranks: Tensor) -> Tensor:
    """h <- a h + b along each run of steps, from h = 0; the runs stand end to end."""
    reach, longest = 1, int(ranks.max()) if len(ranks) else 0
    inside = (ranks > 0)[:, None]
    a = torch.where(inside, a, torch.zeros_like(a))
    while reach <= longest:
        inside = (ranks >= reach)[:, None]
        zero = torch.zeros_like(a[:reach])
        earlier_b = torch.cat([zero, b[:-reach]])
        earlier_a = torch.cat([zero, a[:-reach]])
        b = b + torch.where(inside, a * earlier_b, torch.zeros_like(b))
        a = torch.where(inside, a * earlier_a, a)
        reach *= 2
    return b


def new(frame: Frame, settings: TrainingSettings) -> Net:
    """An untrained net: found by scoring.zoo.NETS."""
    return Net(frame, settings.width)


def export(net: Net) -> dict[str, bytes]:
    """The files of a generation: the graph of the heads, the weights of the steps."""
    return {GRAPH: graph(net.eval(), "mingru_head"), WEIGHTS: _weights(net)}


def _weights(net: Net) -> bytes:
    """(T, 2W) and (W, 2W) matrices; the tokens' standardisation goes into the first."""
    w1 = array(net.cell1.weight).T * array(net.token_scale)[:, None]
    b1 = array(net.cell1.bias) - array(net.token_mean) @ w1
    w2, b2 = array(net.cell2.weight).T, array(net.cell2.bias)
    arrays = {"w1": w1, "b1": b1, "w2": w2, "b2": b2}
    return save_safetensors({name: np.ascontiguousarray(a) for name, a in arrays.items()})
