"""The GRU net in torch: what is trained, and its export. Never imported by a worker.

The layer is torch's own, on packed sequences: no user is padded to the length of another. `step`
is its definition (Cho et al. 2014, arXiv:1406.1078); the two are held equal by test, in values
and gradients. The heads are those of scoring.zoo.nets.

Shapes: B users, S steps of all users end to end, T tokens, W width. `ranks` (S,) number each
user's steps from 0.
"""

from __future__ import annotations

import numpy as np
import torch
from safetensors.numpy import save as save_safetensors
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from scoring.settings import TrainingSettings
from scoring.zoo.graphs import array, graph
from scoring.zoo.gru import WEIGHTS
from scoring.zoo.nets import Frame
from scoring.zoo.nets import Net as Base
from scoring.zoo.served_heads import GRAPH


class Net(Base):
    """One GRU layer and the heads."""

    def __init__(self, frame: Frame, width: int = 32) -> None:
        super().__init__(frame)
        self.width = width
        self.cell = nn.GRU(len(frame.tokens.mean), width)
        self.add_head(width)

    def step(self, carry: Tensor, token: Tensor) -> Tensor:
        """One step of a batch of users: (B, W), (B, T) -> (B, W). The definition."""
        x = (token - self.token_mean) * self.token_scale
        of = dict(self.cell.named_parameters())
        by_token = functional.linear(x, of["weight_ih_l0"], of["bias_ih_l0"])
        by_carry = functional.linear(carry, of["weight_hh_l0"], of["bias_hh_l0"])
        reset_x, update_x, new_x = by_token.chunk(3, dim=-1)
        reset_h, update_h, new_h = by_carry.chunk(3, dim=-1)
        reset, update = torch.sigmoid(reset_x + reset_h), torch.sigmoid(update_x + update_h)
        new = torch.tanh(new_x + reset * new_h)
        return (1 - update) * new + update * carry

    def sequence(self, tokens: Tensor, ranks: Tensor) -> Tensor:
        """Carries after every step, from zero carries: (S, T), (S,) -> (S, W)."""
        if not len(tokens):
            return torch.zeros(0, self.width)
        x = (tokens - self.token_mean) * self.token_scale
        order, sizes = packed(ranks)
        made, _ = self.cell(PackedSequence(x[order], sizes))
        out = torch.empty_like(made.data)
        return out.index_copy(0, order, made.data)


def packed(ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Order of the steps by rank, longest user first within one, and how many have each rank.

    >>> order, sizes = packed(torch.tensor([0, 0, 1, 2, 0, 1]))
    >>> order.tolist(), sizes.tolist()
    ([1, 4, 0, 2, 5, 3], [3, 2, 1])
    """
    first = torch.nonzero(ranks == 0)[:, 0]
    ends = torch.cat([first[1:], torch.tensor([len(ranks)])])
    user = torch.cumsum((ranks == 0).long(), 0) - 1
    place = torch.empty_like(first)
    place[torch.argsort(first - ends, stable=True)] = torch.arange(len(first))
    order = torch.argsort(ranks * len(first) + place[user])
    return order, torch.bincount(ranks)


def new(frame: Frame, settings: TrainingSettings) -> Net:
    """An untrained net: found by scoring.zoo.NETS."""
    return Net(frame, settings.width)


def export(net: Net) -> dict[str, bytes]:
    """The files of a generation: the graph of the heads, the weights of the steps."""
    return {GRAPH: graph(net.eval(), "gru_head"), WEIGHTS: _weights(net)}


def _weights(net: Net) -> bytes:
    """(T, 3W) and (W, 3W) matrices; the tokens' standardisation goes into the first."""
    of = {name: array(weight) for name, weight in net.cell.named_parameters()}
    w_token = of["weight_ih_l0"].T * array(net.token_scale)[:, None]
    arrays = {
        "w_token": w_token,
        "b_token": of["bias_ih_l0"] - array(net.token_mean) @ w_token,
        "w_carry": of["weight_hh_l0"].T,
        "b_carry": of["bias_hh_l0"],
    }
    return save_safetensors({name: np.ascontiguousarray(a) for name, a in arrays.items()})
