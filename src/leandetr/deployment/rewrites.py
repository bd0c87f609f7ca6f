"""Rewritings of an exported graph that leave its function as it is and let the engines choose their fast kernels."""

from __future__ import annotations

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.convenience import get_const_tensor, replace_nodes_and_values

#: what the axes of a graph's inputs and outputs are
AXES = {
    "pixel_values": ("batch", "channels", "height", "width"),
    "pixel_mask": ("batch", "height", "width"),
    "images": ("batch", "height", "width", "channels"),
    "logits": ("batch", "queries", "classes"),
    "boxes": ("batch", "queries", "corners"),
    "scores": ("batch", "queries"),
    "labels": ("batch", "queries"),
}


def select_tokens(graph: onnx_ir.Graph) -> None:
    """A product with constant zeros and ones, one a token (1, S, 1), becomes a choice, which is the same.

    RT-DETR's encoder output is such a product. OpenVINO takes the factors of a product into the integer grid behind it, where
    they give each token a grid of its own, and its MatMul cannot multiply those. Where all tokens are chosen, as in small
    images, nothing is left of it.
    """
    for node in list(graph):
        values = value_of(node.inputs[0]) if node.op_type == "Mul" else None
        if values is None or values.ndim != 3 or values.shape[0] != 1 or values.shape[2] != 1:
            continue
        if (values == 1).all():
            for use in list(node.outputs[0].uses()):
                use.node.replace_input_with(use.idx, node.inputs[1])
        elif np.isin(values, (0, 1)).all():
            name = node.outputs[0].name
            chosen = constant(graph, f"{name}_chosen", values.astype(bool))
            zero = constant(graph, f"{name}_zero", np.zeros((), values.dtype))
            choice = onnx_ir.node("Where", [chosen, node.inputs[1], zero])
            replace_nodes_and_values(graph, node, [node], [choice], node.outputs, choice.outputs)


def infer_free_lengths(graph: onnx_ir.Graph) -> None:
    """A Reshape to a computed shape with one free length, such as (batch, 300, 8, 32), infers that length.

    The engines then compute nothing to know the shape. Shapes are those that the exporter says.
    """
    for node in [node for node in graph if node.op_type == "Reshape" and value_of(node.inputs[1]) is None]:
        shape = node.outputs[0].shape
        lengths = [length if isinstance(length, int) else -1 for length in shape or ()]
        if lengths.count(-1) == 1 and 0 not in lengths:
            node.replace_input_with(1, constant(graph, f"{node.outputs[0].name}_shape", np.array(lengths)))


def pad_in_convolutions(graph: onnx_ir.Graph) -> None:
    """Zero padding before a convolution becomes the convolution's own, also through an integer grid, on which 0 always lies:

        Pad -> Conv    and    Pad -> (Clip ->) QuantizeLinear -> DequantizeLinear -> Conv

    "Same" padding is computed by the model and so arrives as a Pad. Both engines run that as a pass over memory of its own,
    in ONNX Runtime in float. Where the unpadded tensor has just come from the same grid, the second rounding to it goes too.
    """
    for conv in [node for node in graph if node.op_type == "Conv"]:
        grid = _grid_before(conv)
        reader = conv if grid is None else grid[0]
        pad = producer(reader.inputs[0])
        if grid is not None and pad is not None and pad.op_type == "Clip" and len(pad.outputs[0].uses()) == 1:
            reader, pad = pad, producer(pad.inputs[0])  # what clamps to a narrow grid reads the Pad
        if pad is None or pad.op_type != "Pad" or len(pad.outputs[0].uses()) > 1:
            continue
        widths = _spatial_padding(pad)
        if widths is None or conv.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            continue
        own = conv.attributes.get_ints("pads", [0] * len(widths))
        conv.attributes["pads"] = onnx_ir.AttrInt64s("pads", [a + b for a, b in zip(own, widths, strict=True)])
        reader.replace_input_with(0, pad.inputs[0])
        before = producer(pad.inputs[0])
        if before is None or before.op_type != "DequantizeLinear":
            continue
        if grid is not None and reader is grid[0] and _same_grid(before, grid[0]):
            conv.replace_input_with(0, before.outputs[0])


def spell_out_group_norms(graph: onnx_ir.Graph) -> None:
    """A GroupNormalization becomes an InstanceNormalization of its groups, scaled and shifted channel by channel.

    ONNX's own type inference fails at it, and so at all that comes after it, and it does not exist below opset 18; ONNX Runtime
    takes it apart itself.
    """
    for node in [node for node in graph if node.op_type == "GroupNormalization"]:
        name, (pixels, *affine) = node.outputs[0].name, node.inputs
        weights = [array for value in affine if (array := value_of(value)) is not None]
        assert len(weights) == 2  # the exporter writes trained scales as constants
        groups, kind = node.attributes["num_groups"].as_int(), weights[0].dtype
        split = constant(graph, f"{name}_split", np.array([0, groups, -1]))
        unit = [constant(graph, f"{name}_{end}", np.full(groups, x, kind)) for end, x in (("ones", 1), ("zeros", 0))]
        columns = [
            constant(graph, f"{name}_{end}", array.reshape(-1, 1, 1))
            for end, array in zip(("scale", "shift"), weights, strict=True)
        ]
        shape = onnx_ir.node("Shape", [pixels])
        grouped = onnx_ir.node("Reshape", [pixels, split])
        epsilon = {"epsilon": node.attributes.get_float("epsilon", 1e-5)}
        norm = onnx_ir.node("InstanceNormalization", [grouped.outputs[0], *unit], epsilon)
        whole = onnx_ir.node("Reshape", [norm.outputs[0], shape.outputs[0]])
        scaled = onnx_ir.node("Mul", [whole.outputs[0], columns[0]])
        shifted = onnx_ir.node("Add", [scaled.outputs[0], columns[1]])
        nodes = [shape, grouped, norm, whole, scaled, shifted]
        replace_nodes_and_values(graph, node, [node], nodes, node.outputs, shifted.outputs)


def own_zero_points(graph: onnx_ir.Graph) -> None:
    """Every integer weight gets zero points of its own, the size of a bias.

    Where layers share them, as after removing duplicate constants, OpenVINO computes all but some of these layers in float.
    """
    for node in graph:
        if node.op_type == "DequantizeLinear" and len(node.inputs) == 3:
            weight, zeros = node.inputs[0], node.inputs[2]
            if weight is None or zeros is None or zeros.const_value is None:
                continue
            if weight.is_initializer() and zeros.is_initializer() and len(zeros.uses()) > 1:
                own = constant(graph, f"{node.outputs[0].name}_zero_point", zeros.const_value.numpy().copy())
                node.replace_input_with(2, own)


def forget_types(graph: onnx_ir.Graph) -> None:
    """Engines infer the types and shapes between inputs and outputs; written down they take more bytes than all nodes, and an
    initializer says them a second time."""
    inside = [value for node in graph.all_nodes() for value in node.outputs if not value.is_graph_output()]
    for value in (*inside, *graph.initializers.values()):
        value.type = value.shape = None
        value.metadata_props.clear()


def name_axes(graph: onnx_ir.Graph) -> None:
    """The axes of inputs and outputs that have no fixed length are called what they are, in place of the exporter's symbols."""
    for value in (*graph.inputs, *graph.outputs):
        names = AXES[str(value.name)]
        assert value.shape is not None  # the exporter says it
        lengths = zip(value.shape, names, strict=True)
        value.shape = onnx_ir.Shape([length if isinstance(length, int) else name for length, name in lengths])


def _grid_before(conv: onnx_ir.Node) -> tuple[onnx_ir.Node, onnx_ir.Node] | None:
    """The QuantizeLinear and DequantizeLinear through which a convolution, and nothing else, reads its input."""
    dequantize = producer(conv.inputs[0])
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or len(dequantize.outputs[0].uses()) > 1:
        return None
    quantize = producer(dequantize.inputs[0])
    if quantize is None or quantize.op_type != "QuantizeLinear" or len(quantize.outputs[0].uses()) > 1:
        return None
    return quantize, dequantize


def _same_grid(one: onnx_ir.Node, other: onnx_ir.Node) -> bool:
    """Whether two nodes that quantize or dequantize do so with the same scale and zero point."""
    pairs = [(value_of(a), value_of(b)) for a, b in zip(one.inputs[1:], other.inputs[1:], strict=True)]
    return all(a is not None and b is not None and np.array_equal(a, b) for a, b in pairs)


def _spatial_padding(pad: onnx_ir.Node) -> list[int] | None:
    """Widths of a constant padding with zeros of images (B, C, H, W) at (top, left, bottom, right), else None."""
    widths = value_of(pad.inputs[1])
    fill = value_of(pad.inputs[2]) if len(pad.inputs) > 2 else np.zeros(())
    mode = pad.attributes.get_string("mode", "constant")
    if widths is None or widths.size != 8 or fill is None or fill.any() or mode != "constant" or len(pad.inputs) > 3:
        return None
    begin, end = widths[:4].tolist(), widths[4:].tolist()
    if any(begin[:2] + end[:2]) or min(begin + end) < 0:
        return None
    return begin[2:] + end[2:]


def producer(value: onnx_ir.Value | None) -> onnx_ir.Node | None:
    """The node whose output this is; None for an input that was left out, a constant, or an input of the graph."""
    return None if value is None else value.producer()


def value_of(value: onnx_ir.Value | None) -> NDArray | None:
    """Of a constant, else None."""
    tensor = get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def constant(graph: onnx_ir.Graph, name: str, array: NDArray) -> onnx_ir.Value:
    """A new initializer."""
    tensor = onnx_ir.tensor(array, name=name)
    constant = onnx_ir.Value(
        name=name, const_value=tensor, type=onnx_ir.TensorType(tensor.dtype), shape=onnx_ir.Shape(array.shape)
    )
    graph.register_initializer(constant)
    return constant
