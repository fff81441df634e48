"""The windowed Transformer in torch: what is trained, and its export. Never imported by a worker.

Layers as in transformer.py. `sequence` takes all steps of all users at once, each looking at the
last V of its own user. That the served steps, one event at a time through the ring, give the same
is held by test. The heads are those of scoring.zoo.nets.

Shapes: S steps of all users end to end, T tokens, D width, G heads, V window. `ranks` (S,) number
each user's steps from 0.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from safetensors.numpy import save as save_safetensors
from torch import Tensor, nn

from scoring.settings import TrainingSettings
from scoring.zoo.graphs import array, graph
from scoring.zoo.nets import CLIP, Frame
from scoring.zoo.nets import Net as Base
from scoring.zoo.served_heads import GRAPH
from scoring.zoo.transformer import EPS, WEIGHTS

LAYERS, HEADS = 2, 4


class Layer(nn.Module):
    """Attention to the last V steps, then a small network on each step."""

    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.heads = math.gcd(width, HEADS)
        self.norm_1 = nn.Parameter(torch.ones(width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.distance = nn.Parameter(torch.zeros(self.heads, window))
        self.merge = nn.Linear(width, width, bias=False)
        self.norm_2 = nn.Parameter(torch.ones(width))
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, where: Tensor, open_: Tensor) -> Tensor:
        """(S, D), steps looked at (S, V), whether they are the same user's (S, V) -> (S, D)."""
        steps, width = x.shape
        size = width // self.heads
        q, k, v = self.qkv(norm(x, self.norm_1)).chunk(3, dim=-1)
        keys = k[where].view(steps, -1, self.heads, size)
        values = v[where].view(steps, -1, self.heads, size)
        score = torch.einsum("mgs,mvgs->mgv", q.view(steps, self.heads, size), keys)
        score = score / math.sqrt(size) + self.distance
        weight = score.masked_fill(~open_[:, None], -torch.inf).softmax(dim=-1)
        seen = torch.einsum("mgv,mvgs->mgs", weight, values).reshape(steps, width)
        x = x + self.merge(seen)
        made: Tensor = self.down(torch.relu(self.up(norm(x, self.norm_2))))
        return x + made


class Net(Base):
    """Two windowed layers and the heads."""

    def __init__(self, frame: Frame, width: int = 32, window: int = 8) -> None:
        super().__init__(frame)
        self.width, self.window = width, window
        self.embed = nn.Linear(len(frame.tokens.mean), width)
        self.layers = nn.ModuleList([Layer(width, window) for _ in range(LAYERS)])
        self.norm_out = nn.Parameter(torch.ones(width))
        self.add_head(width)

    def sequence(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """Readouts after every step: (S, T), (S,) -> (S, D)."""
        x = ((tokens - self.token_mean) * self.token_scale).clamp(-CLIP, CLIP)
        x = self.embed(x)
        distance = torch.arange(self.window)
        open_ = ranks[:, None] >= distance
        where = torch.where(open_, torch.arange(len(ranks))[:, None] - distance, 0)
        for layer in self.layers:
            x = layer(x, where, open_)
        return norm(x, self.norm_out)


def norm(x: Tensor, gain: Tensor) -> Tensor:
    """By the root of the mean square (arXiv:1910.07467)."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + float(EPS)) * gain


def new(frame: Frame, settings: TrainingSettings) -> Net:
    """An untrained net: found by scoring.zoo.NETS."""
    return Net(frame, settings.width, settings.window)


def export(net: Net) -> dict[str, bytes]:
    """The files of a generation: the graph of the heads, the weights of the steps."""
    return {GRAPH: graph(net.eval(), "transformer_head"), WEIGHTS: _weights(net)}


def _weights(net: Net) -> bytes:
    """Matrices as x @ w; those of the layers stacked, (L, ...)."""
    layers = [layer for layer in net.layers if isinstance(layer, Layer)]
    arrays = {
        "token_mean": array(net.token_mean),
        "token_scale": array(net.token_scale),
        "embed": array(net.embed.weight).T,
        "embed_bias": array(net.embed.bias),
        "norm_out": array(net.norm_out),
        "norm_1": np.stack([array(layer.norm_1) for layer in layers]),
        "qkv": np.stack([array(layer.qkv.weight).T for layer in layers]),
        "distance": np.stack([array(layer.distance) for layer in layers]),
        "merge": np.stack([array(layer.merge.weight).T for layer in layers]),
        "norm_2": np.stack([array(layer.norm_2) for layer in layers]),
        "up": np.stack([array(layer.up.weight).T for layer in layers]),
        "up_bias": np.stack([array(layer.up.bias) for layer in layers]),
        "down": np.stack([array(layer.down.weight).T for layer in layers]),
        "down_bias": np.stack([array(layer.down.bias) for layer in layers]),
    }
    return save_safetensors({name: np.ascontiguousarray(a) for name, a in arrays.items()})
