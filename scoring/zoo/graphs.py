"""A net's heads as an ONNX graph, node by node: what is served can be read here, with no tracer.

Inputs `carry` (U, R) where the net has a readout, `features` (U, K, F); outputs expected and
p_active (U, K, H), then q, mu and sigma (U, H) at the first query time. The readout, and the
columns that are the same at all query times, are projected once for all K. A test holds the graph
equal to nets.Net in torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from scoring.zoo.nets import CLIP, SIGMA_MAX, SIGMA_MIN, TINY, Net

OPSET = 17


def array(tensor: Tensor) -> npt.NDArray[np.float32]:
    """For a file."""
    out: npt.NDArray[np.float32] = np.ascontiguousarray(
        tensor.detach().cpu().numpy().astype(np.float32)
    )
    return out


def graph(net: Net, name: str) -> bytes:
    """The heads of a net; `name` is the graph's."""
    arrays, nodes = _hidden(net)
    form = _lognormal if net.form == "lognormal" else _mean
    more_arrays, more_nodes = form(net)
    h = net.horizons
    inputs = [_value("features", "U", "K", net.by_features.in_features)]
    if net.readout:
        inputs.insert(0, _value("carry", "U", net.readout))
    made = helper.make_graph(
        [*nodes, *more_nodes, *_sums()],
        name,
        inputs,
        [
            _value("expected", "U", "K", h),
            _value("p_active", "U", "K", h),
            _value("q_now", "U", h),
            _value("mu_now", "U", h),
            _value("sigma_now", "U", h),
        ],
        [
            numpy_helper.from_array(np.asarray(a), key)
            for key, a in {**arrays, **more_arrays}.items()
        ],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    out: bytes = model.SerializeToString(deterministic=True)
    return out


def _hidden(net: Net) -> tuple[dict[str, Any], list[onnx.NodeProto]]:
    """From the inputs to the last layer's output `o` (U, K, parts x H)."""
    h, fixed = net.horizons, net.static
    mean, scale = array(net.feature_mean), array(net.feature_scale)
    w_f = array(net.by_features.weight).T
    arrays = {
        "fixed_mean": mean[:fixed],
        "fixed_scale": scale[:fixed],
        "w_fixed": w_f[:fixed],
        "f_mean": mean[fixed:],
        "f_scale": scale[fixed:],
        "lo": np.float32(-CLIP),
        "hi": np.float32(CLIP),
        "w_f": w_f[fixed:],
        "b_f": array(net.by_features.bias),
        "w_h": array(net.hidden.weight).T,
        "b_h": array(net.hidden.bias),
        "w_o": array(net.out.weight).T,
        "b_o": array(net.out.bias),
        "one": np.float32(1),
        "log_cap": array(net.log_cap),
        "sums": np.triu(np.ones((h, h), np.float32)),
        "k_axis": np.array([1], np.int64),
        "first": np.array(0, np.int64),
        "zero": np.array([0], np.int64),
        "fixed": np.array([fixed], np.int64),
        "end": np.array([len(mean)], np.int64),
        "f_axis": np.array([2], np.int64),
        "f_axis_now": np.array([1], np.int64),
        "parts": np.full(net.out.out_features // h, h, np.int64),
    }
    nodes = [
        _node("Gather", "features first", "features_now", axis=1),
        _node("Slice", "features_now zero fixed f_axis_now", "still"),
        _node("Sub", "still fixed_mean", "still_centred"),
        _node("Mul", "still_centred fixed_scale", "still_scaled"),
        _node("Clip", "still_scaled lo hi", "still_x"),
        _node("MatMul", "still_x w_fixed", "by_still"),
        _node("Slice", "features fixed end f_axis", "moving"),
        _node("Sub", "moving f_mean", "centred"),
        _node("Mul", "centred f_scale", "scaled"),
        _node("Clip", "scaled lo hi", "x"),
        _node("MatMul", "x w_f", "xw"),
        _node("Add", "xw b_f", "by_features"),
    ]
    if net.by_carry is None:
        nodes.append(_node("Unsqueeze", "by_still k_axis", "once"))
    else:
        arrays["w_c"] = array(net.by_carry.weight).T
        nodes += [
            _node("MatMul", "carry w_c", "cw"),
            _node("Add", "cw by_still", "once_flat"),
            _node("Unsqueeze", "once_flat k_axis", "once"),
        ]
    nodes += [
        _node("Add", "by_features once", "pre1"),
        _node("Relu", "pre1", "x1"),
        _node("MatMul", "x1 w_h", "x1w"),
        _node("Add", "x1w b_h", "pre2"),
        _node("Relu", "pre2", "x2"),
        _node("MatMul", "x2 w_o", "x2w"),
        _node("Add", "x2w b_o", "o"),
    ]
    return arrays, nodes


def _lognormal(net: Net) -> tuple[dict[str, Any], list[onnx.NodeProto]]:
    """`o` -> q, mu, sigma and the expected `increments` of the form `lognormal`."""
    arrays = {
        "w_offset": array(net.offset_weight),
        "offset": np.array([net.offset], np.int64),
        "s_min": np.float32(SIGMA_MIN),
        "s_max": np.float32(SIGMA_MAX),
        "half": np.float32(0.5),
    }
    nodes = [
        _node("Gather", "features offset", "own", axis=2),
        _node("Mul", "own w_offset", "own_weighed"),
        _node("Split", "o parts", "q_logit mu_o s_logit hazard", axis=2),
        _node("Add", "mu_o own_weighed", "mu"),
        _node("Softplus", "s_logit", "s_soft"),
        _node("Add", "s_soft s_min", "s_open"),
        _node("Min", "s_open s_max", "sigma"),
        _node("Sigmoid", "q_logit", "q"),
        _node("Mul", "sigma sigma", "s2"),
        _node("Mul", "s2 half", "s2_half"),
        _node("Add", "mu s2_half", "log_mean"),
        _node("Min", "log_mean log_cap", "log_mean_capped"),
        _node("Exp", "log_mean_capped", "mean"),
        _node("Mul", "q mean", "increments"),
    ]
    return arrays, nodes


def _mean(net: Net) -> tuple[dict[str, Any], list[onnx.NodeProto]]:
    """The same of the form `mean`."""
    arrays = {
        "unit": array(net.unit),
        "cap": array(net.log_cap.exp()),
        "shift": array(net.shift),
        "spread": array(net.spread),
        "tiny": np.float32(TINY),
        "nothing": np.float32(0),
    }
    nodes = [
        _node("Split", "o parts", "q_logit level hazard", axis=2),
        _node("Sigmoid", "q_logit", "q"),
        _node("Softplus", "level", "level_soft"),
        _node("Mul", "level_soft unit", "mean_open"),
        _node("Min", "mean_open cap", "increments"),
        _node("Add", "increments tiny", "increments_some"),
        _node("Log", "increments_some", "log_increment"),
        _node("Neg", "q_logit", "q_opposite"),
        _node("Softplus", "q_opposite", "minus_log_q"),
        _node("Add", "log_increment minus_log_q", "log_given"),
        _node("Add", "log_given shift", "mu"),
        _node("Mul", "mu nothing", "none"),
        _node("Add", "none spread", "sigma"),
    ]
    return arrays, nodes


def _sums() -> list[onnx.NodeProto]:
    """From increments to horizons."""
    return [
        _node("MatMul", "increments sums", "expected"),
        _node("Softplus", "hazard", "risk"),
        _node("MatMul", "risk sums", "risks"),
        _node("Neg", "risks", "log_silent"),
        _node("Exp", "log_silent", "silent"),
        _node("Sub", "one silent", "p_active"),
        _node("Gather", "q first", "q_now", axis=1),
        _node("Gather", "mu first", "mu_now", axis=1),
        _node("Gather", "sigma first", "sigma_now", axis=1),
    ]


def _node(op: str, inputs: str, outputs: str, **attributes: int) -> onnx.NodeProto:
    names = outputs.split()
    made = helper.make_node(op, inputs.split(), names, f"{op}_{names[0]}")
    made.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    return made


def _value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
