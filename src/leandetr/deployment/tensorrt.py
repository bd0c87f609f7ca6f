"""Quantized graphs as NVIDIA's TensorRT takes them ("explicit quantization"), also its versions for Jetson.

TensorRT reads pairs of QuantizeLinear and DequantizeLinear, and of these only signed int8 around 0: one scale a tensor for
activations, one an output channel for weights. So here:

- activations are on int8 grids with zero point 0, which the scheme Static chooses with `target="tensorrt"`, and no grid lies
  between a convolution and the shortcut that is added to it (`quantization/passes/placement.py`);
- the weights of these layers are floats that run through a pair of their own: TensorRT 8 knows no integer initializers;
- biases are floats: no version dequantizes int32;
- weights that are multiplied with floats are floats.

No integer changes: q * scale goes back to q. The file is as large as a float one; the engine that TensorRT builds of it is not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
from onnx_ir.convenience import replace_nodes_and_values
from onnx_ir.passes import common

from leandetr.deployment.rewrites import constant, value_of
from leandetr.deployment.unpacking import PRODUCTS, dequantized, was_dequantized
from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.quantization.layers.modules import AT_RUN_TIME, Grid, QuantizedLayer

MIDDLE = 128  # what the zero point of a signed grid is among unsigned integers
PASSING = ("Transpose", "Reshape", "Mul")  # may stand between weights and their product


def check_tensorrt(detector: Detector, path: Path) -> None:
    """Raises UserError where a detector has no grids, or some that TensorRT does not know."""
    grids = [module for module in detector.modules() if isinstance(module, Grid)]
    at_run_time = any(isinstance(module, QuantizedLayer) and module.plan.input in AT_RUN_TIME for module in detector.modules())
    if at_run_time or not grids or any(grid.bits != 8 or int(grid.zero_point) != MIDDLE for grid in grids):
        raise UserError(
            f"{path}: TensorRT computes on signed 8-bit grids around 0, which this detector has not; quantize the float one "
            "with --scheme static --set target=tensorrt, or give TensorRT a float file (--to onnx)"
        )


def to_tensorrt(model: onnx_ir.Model) -> None:
    """Rewrite the graph of a detector that `check_tensorrt` lets pass, in place. What it leaves exists since opset 13."""
    graph, zero = model.graph, np.zeros((), np.int8)
    signed = constant(graph, "zero_point", zero)
    for node in list(graph):
        if node.op_type == "DequantizeLinear" and value_of(node.inputs[0]) is not None:
            _weights(graph, node)
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.replace_input_with(2, signed)
            node.attributes.clear()  # those that came later than opset 13, at their defaults
    common.RemoveUnusedNodesPass()(model)  # and the integers


def _weights(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """Floats in place of stored integers, on a grid of their own where integers are multiplied."""
    values, name = dequantized(node), node.outputs[0].name
    assert values is not None  # `export_onnx` writes integers and scales as constants
    integers, scale = value_of(node.inputs[0]), value_of(node.inputs[1])
    floats = constant(graph, f"{name}_float", values)
    if integers is None or integers.dtype != np.int8 or scale is None or scale.ndim != 1 or not _meets_integers(node):
        replace_nodes_and_values(graph, node, [node], [], node.outputs, [floats])
        return
    grid = [node.inputs[1], constant(graph, f"{name}_zeros", np.zeros(len(scale), np.int8))]
    axis = {"axis": node.attributes.get_int("axis", 1)}
    rounded = onnx_ir.node("QuantizeLinear", [floats, *grid], axis)
    back = onnx_ir.node("DequantizeLinear", [rounded.outputs[0], *grid], axis)
    replace_nodes_and_values(graph, node, [node], [rounded, back], node.outputs, back.outputs)


def _meets_integers(node: onnx_ir.Node) -> bool:
    """Whether weights are multiplied with an activation that comes off a grid."""
    for use in node.outputs[0].uses():
        reader = use.node
        if reader.op_type in PASSING and _meets_integers(reader):
            return True
        if reader.op_type in PRODUCTS and use.idx == 1 and was_dequantized(reader.inputs[0]):
            return True
    return False
