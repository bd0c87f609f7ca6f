"""Low-bit grids in the form that ONNX Runtime multiplies in integers, made when a file is loaded; no integer changes.

A grid narrower than its type arrives as Clip, QuantizeLinear, DequantizeLinear, which OpenVINO reads best. ONNX Runtime only
computes a convolution in integers where QuantizeLinear follows it at once; with a Clip or an activation's clamp between, it
unpacks the weights in every call and multiplies floats (19.0 ms against 8.2 in float for an RT-DETRv2 on EfficientNet-Lite0 at
192x192). And where no grid follows, as in front of a shortcut's sum, it has a kernel for matrices, but none for convolutions
(its ConvInteger is several times slower than a float convolution). So:

- clamps in front of a grid move behind it, onto bytes: Q(clip(x, a, b)) = clip(Q(x), Q(a), Q(b)), because Q is monotone;
- a 1x1 convolution that answers in float becomes a product of matrices;
- the bias behind a product of integer matrices goes into it, where ONNX Runtime needs two more steps in every call;
- an enlargement that repeats pixels repeats bytes, so that a concatenation behind it can join bytes too.

The weights of the other convolutions that answer in float are unpacked, see `unpacking.py`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir
from onnx_ir.convenience import replace_nodes_and_values

from leandetr.deployment.rewrites import constant, producer, value_of

BYTES = (0, 255)
CLAMPS = ("Clip", "Relu")
OWN_OPERATORS = "com.microsoft"  # the domain of those that ONNX Runtime adds to ONNX's


def clamp_bytes(graph: onnx_ir.Graph) -> int:
    """Move clamps in front of a uint8 grid behind it, in place, and return how many grids had some."""
    found = 0
    for quantize in [node for node in graph if node.op_type == "QuantizeLinear"]:
        grid = [array for value in quantize.inputs[1:] if (array := value_of(value)) is not None and not array.ndim]
        if len(quantize.inputs) != 3 or len(grid) != 2 or grid[1].dtype != np.uint8:
            continue
        (low, high), clamps = BYTES, list[onnx_ir.Node]()
        source = quantize.inputs[0]
        while (clamp := producer(source)) is not None and (bounds := _bounds(clamp)) and len(clamp.outputs[0].uses()) == 1:
            least, most = (None if bound is None else _rounded(bound, *grid) for bound in bounds)
            low, high = max(low, least or 0), min(high, BYTES[1] if most is None else most)
            clamps.append(clamp)
            source = clamp.inputs[0]
        if not clamps:
            continue
        found += 1
        quantize.replace_input_with(0, source)
        graph.remove(clamps, safe=True)
        if (low, high) != BYTES:
            name, integers = quantize.outputs[0].name, quantize.outputs[0]
            ends = [
                constant(graph, f"{name}_{end}", np.array(value, np.uint8)) for end, value in (("low", low), ("high", high))
            ]
            readers = list(integers.uses())
            behind = onnx_ir.node("Clip", [integers, *ends])
            graph.insert_after(quantize, [behind])
            for reader in readers:
                reader.node.replace_input_with(reader.idx, behind.outputs[0])
    return found


def _bounds(node: onnx_ir.Node) -> tuple[float | None, float | None] | None:
    """Of a clamp with constant ends, None for an end that is open; None where the node is no such clamp."""
    if node.op_type not in CLAMPS:
        return None
    if node.op_type == "Relu":
        return 0.0, None
    given = [*node.inputs[1:], None, None][:2]
    ends = [None if end is None else value_of(end) for end in given]
    if any(end is None and value is not None for end, value in zip(ends, given, strict=True)):
        return None
    low, high = (None if end is None else float(end) for end in ends)
    return low, high


def _rounded(x: float, scale: np.ndarray, zero_point: np.ndarray) -> int:
    """What QuantizeLinear makes of x, in its arithmetic."""
    return int(np.clip(np.rint(np.float32(x) / scale) + np.float32(zero_point), *BYTES))


def multiply_matrices(graph: onnx_ir.Graph) -> int:
    """Make a product of matrices of every 1x1 convolution of integers that answers in float, in place, and return how many."""
    found = 0
    for conv in [node for node in graph if node.op_type == "Conv" and not answers_on_a_grid(node)]:
        given = [node for value in conv.inputs if (node := producer(value)) is not None and node.op_type == "DequantizeLinear"]
        if len(given) != len(conv.inputs) or not _is_plain(conv):
            continue
        weight, scale = value_of(given[1].inputs[0]), value_of(given[1].inputs[1])
        if weight is None or scale is None or weight.shape[2:] != (1, 1) or given[1].attributes.get_int("axis", 1) != 0:
            continue
        name = conv.outputs[0].name
        rows = constant(graph, f"{name}_matrix", np.ascontiguousarray(weight.reshape(weight.shape[:2]).T))
        steps = constant(graph, f"{name}_steps", scale)
        zeros = constant(graph, f"{name}_zeros", np.zeros(len(weight), weight.dtype))
        pixels = onnx_ir.node("Transpose", [conv.inputs[0]], {"perm": [0, 2, 3, 1]})
        matrix = onnx_ir.node("DequantizeLinear", [rows, steps, zeros], {"axis": 1})
        nodes = [pixels, matrix, onnx_ir.node("MatMul", [pixels.outputs[0], matrix.outputs[0]])]
        if len(given) == 3:
            integers, unit = (value_of(value) for value in given[2].inputs[:2])
            assert integers is not None  # `export_onnx` writes biases as constants
            assert unit is not None
            bias = constant(graph, f"{name}_bias", integers.astype(np.float32) * unit)
            nodes.append(onnx_ir.node("Add", [nodes[-1].outputs[0], bias]))
        nodes.append(onnx_ir.node("Transpose", [nodes[-1].outputs[0]], {"perm": [0, 3, 1, 2]}))
        replace_nodes_and_values(graph, conv, [conv], nodes, conv.outputs, nodes[-1].outputs)
        found += 1
    return found


def add_in_products(graph: onnx_ir.Graph) -> int:
    """Let every product of matrices on grids, an activation and weights, add its bias itself, in place, and return how many do.

    The sums are the same to the last bit. ONNX Runtime's own operator for them knows its CPU kernel alone.
    """
    found = 0
    for add in [node for node in graph if node.op_type == "Add"]:
        product, bias = next(
            ((node, other) for value, other in (add.inputs, reversed(add.inputs)) if (node := _product(value))), (None, None)
        )
        if product is None:
            continue
        pixels, matrix, addend = producer(product.inputs[0]), _matrix(product.inputs[1]), _addend(bias)
        if (
            pixels is None
            or pixels.op_type != "DequantizeLinear"
            or len(pixels.inputs) != 3
            or matrix is None
            or addend is None
        ):
            continue
        integers, unit, zero = pixels.inputs
        weight, scale = matrix
        if (step := value_of(unit)) is None or step.ndim or addend.shape != weight.shape[1:]:
            continue
        name = add.outputs[0].name
        rows, steps = constant(graph, f"{name}_matrix", weight), constant(graph, f"{name}_steps", scale)
        zeros = constant(graph, f"{name}_zeros", np.zeros(scale.shape, weight.dtype))
        inputs = [integers, rows, unit, steps, zero, zeros, constant(graph, f"{name}_addend", addend)]
        whole = onnx_ir.node("MatMulIntegerToFloat", inputs, domain=OWN_OPERATORS)
        replace_nodes_and_values(graph, add, [product, add], [whole], add.outputs, whole.outputs)
        found += 1
    if found:
        graph.opset_imports[OWN_OPERATORS] = 1
    return found


def _product(value: onnx_ir.Value | None) -> onnx_ir.Node | None:
    """The product of matrices that a value is and nothing else reads."""
    node = producer(value)
    return node if node is not None and node.op_type == "MatMul" and len(node.outputs[0].uses()) == 1 else None


def _matrix(value: onnx_ir.Value | None) -> tuple[np.ndarray, np.ndarray] | None:
    """(in, out) int8 weights without a zero point, and their steps, one or (out,); None where a value is something else."""
    node = producer(value)
    turned = False
    if node is not None and node.op_type == "Transpose" and list(node.attributes.get_ints("perm", ())) == [1, 0]:
        node, turned = producer(node.inputs[0]), True
    if node is None or node.op_type != "DequantizeLinear":
        return None
    weight, scale, *zeros = (value_of(given) for given in node.inputs)
    if weight is None or scale is None or weight.dtype != np.int8 or weight.ndim != 2:
        return None
    if any(zero is None or zero.any() for zero in zeros) or scale.ndim > 1:
        return None
    if scale.ndim and node.attributes.get_int("axis", 1) % 2 != (0 if turned else 1):
        return None
    return np.ascontiguousarray(weight.T if turned else weight), scale


def _addend(value: onnx_ir.Value | None) -> np.ndarray | None:
    """A constant bias, also one that stands as integers; None where a value is something else."""
    node = producer(value)
    if node is None or node.op_type != "DequantizeLinear":
        return value_of(value)
    integers, unit = (value_of(given) for given in node.inputs[:2])
    return None if integers is None or unit is None else integers.astype(np.float32) * unit


def repeat_bytes(graph: onnx_ir.Graph) -> int:
    """Let every Resize to the nearest pixel between a grid and a concatenation on a grid read integers, in place, and return
    how many there were."""
    found = 0
    for resize in [node for node in graph if node.op_type == "Resize"]:
        dequantize = producer(resize.inputs[0])
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        if resize.attributes.get_string("mode", "nearest") != "nearest" or not _joined_on_a_grid(resize):
            continue
        resize.replace_input_with(0, dequantize.inputs[0])
        readers = list(resize.outputs[0].uses())
        behind = onnx_ir.node("DequantizeLinear", [resize.outputs[0], *dequantize.inputs[1:]])
        graph.insert_after(resize, [behind])
        for reader in readers:
            reader.node.replace_input_with(reader.idx, behind.outputs[0])
        found += 1
    return found


def _joined_on_a_grid(node: onnx_ir.Node) -> bool:
    """Whether all that read a node are concatenations, and all that read those are grids."""
    joins = [use.node for use in node.outputs[0].uses()]
    behind = [use.node.op_type for join in joins for use in join.outputs[0].uses()]
    return all(join.op_type == "Concat" for join in joins) and all(kind == "QuantizeLinear" for kind in behind)


def answers_on_a_grid(conv: onnx_ir.Node) -> bool:
    """Whether a convolution's output goes to a grid and nowhere else, at once or after a ReLU."""
    node = conv
    while len(node.outputs[0].uses()) == 1:
        node = next(iter(node.outputs[0].uses())).node
        if node.op_type == "QuantizeLinear":
            return True
        if node.op_type not in CLAMPS:
            return False
    return False


def _is_plain(conv: onnx_ir.Node) -> bool:
    """Stride 1, one group, no padding."""
    attributes = conv.attributes
    pads, strides = attributes.get_ints("pads", [0]), attributes.get_ints("strides", [1])
    padded = any(pads) or attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return attributes.get_int("group", 1) == 1 and all(stride == 1 for stride in strides) and not padded
