"""Integer weights that are multiplied with floats, made floats once, when a file is loaded.

Left as they are, ONNX Runtime and OpenVINO unpack those of convolutions in every call, and ONNX Runtime's MatMul rounds its
inputs to 8 bits, for which the model was not quantized, or runs a 4-bit kernel slower than its float one (9.1 against 5.2 ms
for 1050x256x1024). The file stays small; memory is that of the float model. Weights whose product also has an input on an
integer grid stay integers, but for ONNX Runtime's convolutions without a grid on their output, which it computes in float too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.convenience import replace_nodes_and_values

from leandetr.deployment.integer_kernels import answers_on_a_grid
from leandetr.deployment.openvino import core, import_openvino
from leandetr.deployment.rewrites import producer, value_of

PRODUCTS = ("MatMul", "Gemm", "Conv")
BETWEEN = ("Transpose", "Reshape", "Mul", "Cast")  # may stand between a dequantization and its product


def unpack_onnx(model: onnx_ir.Model) -> int:
    """Unpack the weights of an ONNX model in place, and return how many there were."""
    found = 0
    for node in list(model.graph):
        integers = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if integers is None or not integers.is_initializer() or _multiplied_on_a_grid(node):
            continue
        values = dequantized(node)
        if values is None:
            continue
        output = node.outputs[0]
        constant = onnx_ir.Value(name=f"{output.name}_unpacked", const_value=onnx_ir.tensor(values))
        model.graph.register_initializer(constant)
        replace_nodes_and_values(model.graph, node, [node], [], [output], [constant])
        found += 1
    return found


def _multiplied_on_a_grid(dequantize: onnx_ir.Node) -> bool:
    """Whether a product that ONNX Runtime can compute in integers reads these, and has another operand that was dequantized
    too."""
    left = [dequantize]
    while left:
        node = left.pop()
        for use in node.outputs[0].uses():
            if use.node.op_type in BETWEEN:
                left.append(use.node)
            elif use.node.op_type == "Conv" and not answers_on_a_grid(use.node):
                continue
            elif use.node.op_type != "Shape" and (
                use.node.op_type not in PRODUCTS
                or any(was_dequantized(value) for index, value in enumerate(use.node.inputs[:2]) if index != use.idx)
            ):
                return True
    return False


def was_dequantized(value: onnx_ir.Value | None) -> bool:
    """Whether a value comes off a grid, by way of nothing but changes of its layout."""
    node = producer(value)
    while node is not None and node.op_type in BETWEEN[:2]:
        node = producer(node.inputs[0])
    return node is not None and node.op_type == "DequantizeLinear"


def dequantized(node: onnx_ir.Node) -> NDArray | None:
    """integers * scale, a channel or a group each; None where the file is not one of `export_onnx`."""
    scale = node.inputs[1]
    if value_of(scale) is None and (cast := producer(scale)) is not None:
        scale = cast.inputs[0]  # it widens a scale in half precision
    given = (node.inputs[0], scale, *node.inputs[2:])
    arrays = [array.astype(np.float32) for value in given if (array := value_of(value)) is not None]
    if len(arrays) != len(given):
        return None
    integers, steps, *zero_points = arrays
    if any(zeros.any() for zeros in zero_points):
        return None
    axis = node.attributes.get_int("axis", 1)
    if steps.ndim == integers.ndim > 1:
        return integers * np.repeat(steps, integers.shape[axis] // steps.shape[axis], axis)
    if steps.ndim == 1:
        steps = steps.reshape([-1 if dimension == axis else 1 for dimension in range(integers.ndim)])
    return integers * steps


OPENVINO_PRODUCTS = ("MatMul", "Convolution", "GroupConvolution")
DEQUANTIZATION = ("Multiply", "Subtract", "Convert", "Transpose", "Reshape")
INTEGERS = ("i4", "u4", "i8", "u8")
SEVEN_BITS = 64  # the largest of their magnitudes


def unpack_openvino(model: Any) -> int:
    """Unpack the weights of an `openvino.Model` in place, and return how many there were.

    Raises RuntimeError where OpenVINO cannot compute them.
    """
    openvino = import_openvino()
    found = [product.input(1) for product in _integer_products(model) if not _on_a_grid(product.input_value(0).get_node())]
    if found:
        weights = openvino.Model([port.get_source_output() for port in found], [], "weights")
        values = core().compile_model(weights, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({})
        for index, port in enumerate(found):
            constant = openvino.opset13.constant(values[index].copy())
            port.replace_source_output(constant.output(0))
    return len(found)


def can_overflow(model: Any) -> bool:
    """Whether a product of an `openvino.Model` has integers for both of its operands, with weights of more than 7 bits: with
    bytes, two such products can be too much for 16 bits."""
    return any(
        abs(weights.get_data().astype(int)).max() > SEVEN_BITS
        for product in _integer_products(model)
        if _on_a_grid(product.input_value(0).get_node())
        for weights in _integers(product.input_value(1).get_node())
    )


def _integer_products(model: Any) -> list[Any]:
    """Those with integer weights."""
    return [
        product
        for product in model.get_ordered_ops()
        if product.get_type_name() in OPENVINO_PRODUCTS
        and product.input_value(1).get_element_type().get_type_name() == "f32"
        and _integers(product.input_value(1).get_node())
    ]


def _integers(node: Any) -> list[Any]:
    """The integer constants that a node is computed from; none where it is computed from more than constants."""
    found, left = [], [node]
    while left:
        node = left.pop()
        if node.get_type_name() == "Constant":
            if node.get_element_type().get_type_name() in INTEGERS:
                found.append(node)
        elif node.get_input_size() == 0:
            return []
        left += [node.input_value(index).get_node() for index in range(node.get_input_size())]
    return found


def _on_a_grid(node: Any) -> bool:
    while node.get_type_name() in DEQUANTIZATION:
        node = node.input_value(0).get_node()
    return node.get_type_name() == "FakeQuantize"
