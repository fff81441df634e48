"""The minGRU net in torch: what is trained, and its export. Never imported by a worker.

Layers as in mingru.py (arXiv:2410.01201). The head reads [carry, standardised query-time
features] and gives, per increment between two horizons: a hurdle q, the lognormal (mu, sigma) of
the value (ZILN, arXiv:1912.07753) and a hazard for activity. mu starts at the log of the user's
own shrunken mean order value with a learned weight: what one order is worth is known per user, so
the net learns how many there will be.

Shapes: S steps of all users end to end, N rows (a user at one query time), T tokens, F features,
W width, H horizons. `ranks` (S,) number each user's steps from 0. `step` and `sequence` are held
equal by test, in values and gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save as save_safetensors
from torch import Tensor, nn
from torch.nn import functional

CLIP = 6.0  # standardised features are cut here: a query far outside training stays sane
SIGMA_MIN, SIGMA_MAX = 0.05, 2.5
HIDDEN, HIDDEN2 = 64, 32
OPSET = 17


@dataclass(frozen=True, slots=True)
class Scaling:
    """Standardisation of one set of columns; scale 0 encodes a column constant in training."""

    mean: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]  # 1 / standard deviation, or 0

    @classmethod
    def of(
        cls, columns: npt.NDArray[np.float32], silent: npt.NDArray[np.bool_] | None = None
    ) -> Scaling:
        """Fitted to (N, F); columns in `silent` (F,) are encoded as 0 like constant ones."""
        wide = columns.astype(np.float64)
        mean, sd = wide.mean(axis=0), wide.std(axis=0)
        varies = np.ptp(columns, axis=0) > 1e-6 * np.maximum(1.0, np.abs(mean))
        if silent is not None:
            varies &= ~silent
        scale = np.where(varies, 1 / np.maximum(sd, 1e-9), 0.0)
        return cls(mean.astype(np.float32), scale.astype(np.float32))


class Net(nn.Module):
    """Two minGRU layers and the head."""

    def __init__(
        self,
        tokens: Scaling,
        features: Scaling,
        horizons: int,
        offset: int,
        width: int = 32,
        static: int = 0,
    ) -> None:
        """`offset` is the column of `features` that holds the log of the mean order value.

        static: how many columns, the first ones, are the same at all query times of a user.
        """
        super().__init__()
        self.width, self.horizons, self.offset, self.static = width, horizons, offset, static
        self.cell1 = nn.Linear(len(tokens.mean), 2 * width)
        self.cell2 = nn.Linear(width, 2 * width)
        self.by_features = nn.Linear(len(features.mean), HIDDEN)
        self.by_carry = nn.Linear(2 * width, HIDDEN, bias=False)
        self.hidden = nn.Linear(HIDDEN, HIDDEN2)
        self.out = nn.Linear(HIDDEN2, 4 * horizons)
        self.offset_weight = nn.Parameter(torch.ones(horizons))
        self.log_cap: Tensor
        self.token_mean: Tensor
        self.token_scale: Tensor
        self.feature_mean: Tensor
        self.feature_scale: Tensor
        self.register_buffer("log_cap", torch.full((horizons,), 20.0))
        for name, scaling in (("token", tokens), ("feature", features)):
            self.register_buffer(f"{name}_mean", torch.from_numpy(scaling.mean.copy()))
            self.register_buffer(f"{name}_scale", torch.from_numpy(scaling.scale.copy()))

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

    def head(
        self, carry: Tensor, features: Tensor, dropout: nn.Module | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, 2W), (N, F) -> logits of q, mu, sigma, logits of the hazard; each (N, H)."""
        x = ((features - self.feature_mean) * self.feature_scale).clamp(-CLIP, CLIP)
        x = torch.relu(self.by_features(x) + self.by_carry(carry))
        if dropout is not None:
            x = dropout(x)
        x = torch.relu(self.hidden(x))
        q, mu, sigma, hazard = self.out(x).chunk(4, dim=-1)
        mu = mu + self.offset_weight * features[:, self.offset, None]
        sigma = (functional.softplus(sigma) + SIGMA_MIN).clamp(max=SIGMA_MAX)
        return q, mu, sigma, hazard

    def values(self, carry: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Expected value and P(active), (N, H) each: what the exported graph gives."""
        q, mu, sigma, hazard = self.head(carry, features)
        mean = torch.exp(torch.minimum(mu + sigma.square() / 2, self.log_cap))
        expected = (torch.sigmoid(q) * mean).cumsum(-1)
        return expected, 1 - torch.exp(-functional.softplus(hazard).cumsum(-1))


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


def export(net: Net) -> tuple[bytes, bytes]:
    """(graph of the head, weights of the steps): the files of a generation."""
    net = net.eval()
    return _graph(net).SerializeToString(deterministic=True), _weights(net)


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    out: npt.NDArray[np.float32] = np.ascontiguousarray(
        tensor.detach().cpu().numpy().astype(np.float32)
    )
    return out


def _weights(net: Net) -> bytes:
    """(T, 2W) and (W, 2W) matrices; the tokens' standardisation goes into the first."""
    w1 = _array(net.cell1.weight).T * _array(net.token_scale)[:, None]
    b1 = _array(net.cell1.bias) - _array(net.token_mean) @ w1
    w2, b2 = _array(net.cell2.weight).T, _array(net.cell2.bias)
    arrays = {"w1": w1, "b1": b1, "w2": w2, "b2": b2}
    return save_safetensors({name: np.ascontiguousarray(a) for name, a in arrays.items()})


def _graph(net: Net) -> onnx.ModelProto:
    """The head, written node by node: what is served can be read here, and no tracer is needed.

    Inputs carry (U, C), features (U, K, F); outputs expected and p_active (U, K, H), then q, mu
    and sigma (U, H) at the first query time. The carry, and the columns that are the same at all
    query times, are projected once for all K.
    """
    h, fixed = net.horizons, net.static
    mean, scale = _array(net.feature_mean), _array(net.feature_scale)
    w_f = _array(net.by_features.weight).T
    arrays = {
        "fixed_mean": mean[:fixed],
        "fixed_scale": scale[:fixed],
        "w_fixed": w_f[:fixed],
        "f_mean": mean[fixed:],
        "f_scale": scale[fixed:],
        "lo": np.float32(-CLIP),
        "hi": np.float32(CLIP),
        "w_f": w_f[fixed:],
        "b_f": _array(net.by_features.bias),
        "w_c": _array(net.by_carry.weight).T,
        "w_h": _array(net.hidden.weight).T,
        "b_h": _array(net.hidden.bias),
        "w_o": _array(net.out.weight).T,
        "b_o": _array(net.out.bias),
        "w_offset": _array(net.offset_weight),
        "offset": np.array([net.offset], np.int64),
        "s_min": np.float32(SIGMA_MIN),
        "s_max": np.float32(SIGMA_MAX),
        "half": np.float32(0.5),
        "one": np.float32(1),
        "log_cap": _array(net.log_cap),
        "sums": np.triu(np.ones((h, h), np.float32)),
        "k_axis": np.array([1], np.int64),
        "first": np.array(0, np.int64),
        "zero": np.array([0], np.int64),
        "fixed": np.array([fixed], np.int64),
        "end": np.array([len(mean)], np.int64),
        "f_axis": np.array([2], np.int64),
        "f_axis_now": np.array([1], np.int64),
        "parts": np.array([h, h, h, h], np.int64),
    }

    def node(op: str, inputs: str, outputs: str, **attributes: int) -> onnx.NodeProto:
        names = outputs.split()
        made = helper.make_node(op, inputs.split(), names, f"{op}_{names[0]}")
        made.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        return made

    nodes = [
        node("Gather", "features first", "features_now", axis=1),
        node("Slice", "features_now zero fixed f_axis_now", "still"),
        node("Sub", "still fixed_mean", "still_centred"),
        node("Mul", "still_centred fixed_scale", "still_scaled"),
        node("Clip", "still_scaled lo hi", "still_x"),
        node("MatMul", "still_x w_fixed", "by_still"),
        node("Slice", "features fixed end f_axis", "moving"),
        node("Sub", "moving f_mean", "centred"),
        node("Mul", "centred f_scale", "scaled"),
        node("Clip", "scaled lo hi", "x"),
        node("MatMul", "x w_f", "xw"),
        node("Add", "xw b_f", "by_features"),
        node("MatMul", "carry w_c", "cw"),
        node("Add", "cw by_still", "once"),
        node("Unsqueeze", "once k_axis", "by_carry"),
        node("Add", "by_features by_carry", "pre1"),
        node("Relu", "pre1", "x1"),
        node("MatMul", "x1 w_h", "x1w"),
        node("Add", "x1w b_h", "pre2"),
        node("Relu", "pre2", "x2"),
        node("MatMul", "x2 w_o", "x2w"),
        node("Add", "x2w b_o", "o"),
        node("Gather", "features offset", "own", axis=2),
        node("Mul", "own w_offset", "own_weighed"),
        node("Split", "o parts", "q_logit mu_o s_logit hazard", axis=2),
        node("Add", "mu_o own_weighed", "mu"),
        node("Softplus", "s_logit", "s_soft"),
        node("Add", "s_soft s_min", "s_open"),
        node("Min", "s_open s_max", "sigma"),
        node("Sigmoid", "q_logit", "q"),
        node("Mul", "sigma sigma", "s2"),
        node("Mul", "s2 half", "s2_half"),
        node("Add", "mu s2_half", "log_mean"),
        node("Min", "log_mean log_cap", "log_mean_capped"),
        node("Exp", "log_mean_capped", "mean"),
        node("Mul", "q mean", "increments"),
        node("MatMul", "increments sums", "expected"),
        node("Softplus", "hazard", "risk"),
        node("MatMul", "risk sums", "risks"),
        node("Neg", "risks", "log_silent"),
        node("Exp", "log_silent", "silent"),
        node("Sub", "one silent", "p_active"),
        node("Gather", "q first", "q_now", axis=1),
        node("Gather", "mu first", "mu_now", axis=1),
        node("Gather", "sigma first", "sigma_now", axis=1),
    ]

    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))

    graph = helper.make_graph(
        nodes,
        "mingru_head",
        [
            value("carry", "U", 2 * net.width),
            value("features", "U", "K", net.by_features.in_features),
        ],
        [
            value("expected", "U", "K", h),
            value("p_active", "U", "K", h),
            value("q_now", "U", h),
            value("mu_now", "U", h),
            value("sigma_now", "U", h),
        ],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model
