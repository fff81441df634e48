"""Boosted trees as an ONNX graph: grown by lightgbm, served without it.

lightgbm compares float64 thresholds, the graph float32 ones. A float32 feature is at most t
exactly if it is at most the largest float32 that is not above t, so thresholds are rounded down
and every row takes the same path; only the sums of leaves are rounded, by some 1e-7. A test holds
the graph equal to lightgbm's own prediction. Features are finite, so there is no path for
"missing", and no categories: a tree that has either is refused.

Source: Ke et al. 2017, "LightGBM"; TreeEnsembleRegressor of ai.onnx.ml, version 3.
Shapes: N rows, F features, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

if TYPE_CHECKING:
    import lightgbm

OPSET, ML_OPSET = 17, 3
Nodes = dict[str, list[Any]]


def graph(ensembles: Sequence[lightgbm.Booster], features: int) -> bytes:
    """Input `x` (N, F) -> output `y` (N, O): the raw score of each ensemble."""
    nodes: Nodes = {}
    tree = 0
    for output, ensemble in enumerate(ensembles):
        for grown in ensemble.dump_model()["tree_info"]:
            _Tree(nodes, tree, output).add(grown["tree_structure"])
            tree += 1
    attributes: dict[str, Any] = {**nodes, "n_targets": len(ensembles)}
    made = helper.make_graph(
        [
            helper.make_node(
                "TreeEnsembleRegressor",
                ["x"],
                ["y"],
                domain="ai.onnx.ml",
                aggregate_function="SUM",
                **attributes,
            )
        ],
        "forest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", len(ensembles)])],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(made, opset_imports=opsets)
    model.ir_version = 10
    onnx.checker.check_model(model)
    out: bytes = model.SerializeToString(deterministic=True)
    return out


class _Tree:
    """Writes one tree into the columns of the graph's node table."""

    def __init__(self, nodes: Nodes, tree: int, output: int) -> None:
        self._nodes, self._tree, self._output, self._next = nodes, tree, output, 0

    def add(self, node: Mapping[str, Any]) -> int:
        """A node and all below it; returns its number."""
        number = self._next
        self._next += 1
        if "leaf_value" in node:
            self._row(number, "LEAF", 0, 0.0, 0, 0)
            self._column("target_treeids", self._tree)
            self._column("target_nodeids", number)
            self._column("target_ids", self._output)
            self._column("target_weights", float(node["leaf_value"]))
            return number
        if node["decision_type"] != "<=" or node["missing_type"] != "None":
            raise ValueError(
                "a tree splits by category or by what is missing: features are finite numbers"
            )
        at = self._row(
            number, "BRANCH_LEQ", int(node["split_feature"]), below(float(node["threshold"])), 0, 0
        )
        self._nodes["nodes_truenodeids"][at] = self.add(node["left_child"])
        self._nodes["nodes_falsenodeids"][at] = self.add(node["right_child"])
        return number

    def _row(
        self, number: int, mode: str, feature: int, value: float, left: int, right: int
    ) -> int:
        row = {
            "nodes_treeids": self._tree,
            "nodes_nodeids": number,
            "nodes_modes": mode,
            "nodes_featureids": feature,
            "nodes_values": value,
            "nodes_truenodeids": left,
            "nodes_falsenodeids": right,
            "nodes_hitrates": 1.0,
            "nodes_missing_value_tracks_true": 0,
        }
        for name, entry in row.items():
            self._column(name, entry)
        return len(self._nodes["nodes_modes"]) - 1

    def _column(self, name: str, entry: Any) -> None:
        self._nodes.setdefault(name, []).append(entry)


def below(threshold: float) -> float:
    """The largest float32 that is not above a float64.

    >>> below(0.1) <= 0.1 < float(np.nextafter(np.float32(below(0.1)), np.float32(1)))
    True
    """
    near = np.float32(threshold)
    if float(near) > threshold:
        near = np.nextafter(near, np.float32(-np.inf))
    return float(near)
