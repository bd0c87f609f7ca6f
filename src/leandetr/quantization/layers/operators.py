"""The operators that quantized layers are made of, and what each becomes in an ONNX graph (opset 21).

| operator | PyTorch | ONNX |
|---|---|---|
| `fake_quantize` | rounds activations to a static grid | QuantizeLinear, DequantizeLinear; Clip before them for narrow grids |
| `dequantize` | integer weights or biases times their scales | DequantizeLinear on an integer initializer |
| `dequantize_groups` | packed integers times one scale a group | DequantizeLinear in blocks on an int4 initializer |
| `unpack` | packed integers as int8 | an int8 initializer, which is what integer kernels take |
| `dynamic_linear` | integer product, grid taken from the input | DynamicQuantizeLinear, MatMulInteger, Cast, Mul |
| the same, per row | integer product, a grid a row | Abs, ReduceMax, Div, Round, Add, Cast, MatMulInteger, Cast, Mul |

PyTorch computes the integers that an engine computes and keeps them in float32, so both differ by the rounding of sums alone.

An exporter knows no packed tensors: it writes the two operators that read them as nodes of a domain of their own, and
`store_integers` puts initializers of ONNX's integer types in their place.
"""

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import torch
from onnx_ir import Value
from onnxscript import opset21, values
from torch import Tensor
from torch.nn import functional as F

from leandetr.quantization.layers.packing import unpack as unpack_integers

op: Any = opset21  # its types are of tensors computed at once; here the same calls build a graph of values

STORAGE = (0, 255)  # what QuantizeLinear clamps to by itself: activations are stored in uint8
ROW_TOP, ROW_ZERO = 127, 128  # of a row's own grid: its largest integer, and where uint8 has its 0


@torch.library.custom_op("leandetr::fake_quantize", mutates_args=())
def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Round x to the grid scale * (q - zero_point), low <= q <= high; ties go to the even integer, as in ONNX.

    Args:
        x: (...) float32.
        scale: () float32, positive.
        zero_point: () uint8, low <= zero_point <= high, so that 0.0 is on the grid.
        low, high: 0 <= low < high <= 255.
    """
    zero = zero_point.to(x.dtype)
    return (torch.clamp(torch.round(x / scale) + zero, low, high) - zero) * scale


@fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("leandetr::dequantize", mutates_args=())
def dequantize(q: Tensor, scale: Tensor) -> Tensor:
    """q: (out, ...) int8 weights or (out,) int32 biases; scale: (out,) float32 -> q * scale, float32, of q's shape."""
    return q.to(scale.dtype) * scale.reshape(-1, *[1] * (q.ndim - 1))


@dequantize.register_fake
def _(q: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(q, dtype=scale.dtype)


@torch.library.custom_op("leandetr::dequantize_groups", mutates_args=())
def dequantize_groups(packed: Tensor, scale: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Weights that share a scale with their neighbours along the input dimension, which is dimension 1.

    Args:
        packed: (bytes,) uint8, see `packing.py`.
        scale: (out, in / group, ...), float16 as stored; the other dimensions are those of the weight.
        bits: of the packed integers.
        shape: (out, in, ...) of the weight.

    Returns:
        Integer times the scale of its group, float32, of the given shape.
    """
    integers = unpack_integers(packed, bits, shape).float()
    return integers * scale.float().repeat_interleave(shape[1] // scale.shape[1], dim=1)


@dequantize_groups.register_fake
def _(packed: Tensor, scale: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    return packed.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("leandetr::unpack", mutates_args=())
def unpack(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """packed: (bytes,) uint8 -> its integers, int8, of the given shape."""
    return unpack_integers(packed, bits, shape)


@unpack.register_fake
def _(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    return packed.new_empty(shape, dtype=torch.int8)


@torch.library.custom_op("leandetr::dynamic_linear", mutates_args=())
def dynamic_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, per_row: bool) -> Tensor:
    """Integer product of x, quantized now, and an integer weight.

    As a whole, the grid is ONNX's DynamicQuantizeLinear: it spans the range of x widened to hold 0, in 256 steps,

        scale = (max - min) / 255,    zero_point = round(-min / scale)

    so it depends on everything in x: an image's result depends on the images beside it in a batch. With `per_row` each row has
    a grid of its own, around 0 because engines know one zero point a matrix,

        scale = max |row| / 127,      zero_point = 128

    Args:
        x: (..., in) float32.
        weight: (out, in) int8.
        weight_scale: (out,) float32.
        per_row: whether each of the (...) rows has its own grid.

    Returns:
        (..., out) float32.
    """
    if per_row:
        scale = x.abs().amax(-1, keepdim=True) / ROW_TOP
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        return F.linear(torch.round(x / scale), weight.to(x.dtype)) * weight_scale * scale
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round((-low / scale).clamp(*STORAGE))
    integers = torch.clamp(torch.round(x / scale) + zero, *STORAGE) - zero
    return F.linear(integers, weight.to(x.dtype)) * (scale * weight_scale)


@dynamic_linear.register_fake
def _(x: Tensor, weight: Tensor, weight_scale: Tensor, per_row: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def onnx_translations() -> dict[Callable, Callable]:
    """Operator -> its ONNX form, for the `custom_translation_table` of `torch.onnx.export(..., dynamo=True,
    opset_version=21)`. The graph is whole after `store_integers`."""
    return {
        torch.ops.leandetr.fake_quantize.default: _onnx_fake_quantize,
        torch.ops.leandetr.dequantize.default: _onnx_dequantize,
        torch.ops.leandetr.dequantize_groups.default: _onnx_dequantize_groups,
        torch.ops.leandetr.unpack.default: _onnx_unpack,
        torch.ops.leandetr.dynamic_linear.default: _onnx_dynamic_linear,
    }


def _onnx_fake_quantize(x: Value, scale: Value, zero_point: Value, low: int, high: int) -> Value:
    if (low, high) != STORAGE:
        zero = op.Cast(zero_point, to=onnx_ir.DataType.FLOAT)
        x = op.Clip(x, op.Mul(scale, op.Sub(float(low), zero)), op.Mul(scale, op.Sub(float(high), zero)))
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero_point), scale, zero_point)


def _onnx_dequantize(q: Value, scale: Value) -> Value:
    # ONNX Runtime recognises an integer Gemm only where the zero points of the weight are written out
    assert scale.shape is not None
    assert q.dtype is not None
    zeros = onnx_ir.tensor(np.zeros(scale.shape.numpy(), q.dtype.numpy()))
    return op.DequantizeLinear(q, scale, op.Constant(value=zeros), axis=0)


def _onnx_dynamic_linear(x: Value, weight: Value, weight_scale: Value, per_row: bool) -> Value:
    if per_row:
        scale = op.Div(op.ReduceMax(op.Abs(x), [-1], keepdims=1), float(ROW_TOP))
        scale = op.Where(op.Equal(scale, 0.0), 1.0, scale)
        integers = op.Cast(op.Add(op.Round(op.Div(x, scale)), float(ROW_ZERO)), to=onnx_ir.DataType.UINT8)  # fast, unlike int8
        zero_point = op.Constant(value=onnx_ir.tensor(np.array(ROW_ZERO, np.uint8)))
    else:
        integers, scale, zero_point = op.DynamicQuantizeLinear(x)
    product = op.MatMulInteger(integers, op.Transpose(weight, perm=[1, 0]), zero_point)
    product = op.Cast(product, to=onnx_ir.DataType.FLOAT)
    if per_row:  # one after the other: of their product ONNX Runtime would take the first row's for all rows
        return op.Mul(op.Mul(product, weight_scale), scale)
    return op.Mul(product, op.Mul(scale, weight_scale))


DOMAIN = "leandetr"
_PACKED = {"bits": onnx.defs.OpSchema.AttrType.INT, "shape": onnx.defs.OpSchema.AttrType.INTS}


def _node(name: str, inputs: dict[str, str], output: str) -> values.Op:
    """A node that reads packed integers, until `store_integers`."""
    schema = onnx.defs.OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[onnx.defs.OpSchema.FormalParameter(key, kind) for key, kind in inputs.items()],
        outputs=[onnx.defs.OpSchema.FormalParameter("y", output)],
        attributes=[onnx.defs.OpSchema.Attribute(key, kind) for key, kind in _PACKED.items()],
    )
    return values.Op(values.Opset(DOMAIN, 1), name, schema)


_dequantize_groups = _node("DequantizeGroups", {"packed": "tensor(uint8)", "scale": "tensor(float16)"}, "tensor(float)")
_unpack = _node("Unpack", {"packed": "tensor(uint8)"}, "tensor(int8)")


def _onnx_dequantize_groups(packed: Value, scale: Value, bits: int, shape: Sequence[int]) -> Value:
    return _dequantize_groups(packed, scale, bits=bits, shape=shape)


def _onnx_unpack(packed: Value, bits: int, shape: Sequence[int]) -> Value:
    return _unpack(packed, bits=bits, shape=shape)


def store_integers(graph: onnx_ir.Graph) -> None:
    """Replace the nodes that read packed integers by initializers, in place.

    Integers that an engine multiplies become int8. Those of weights alone become int4 where they are narrow enough: engines
    unpack them once, so there the file is all that counts. Call it after constants have been folded, which would make
    float32 of the float16 scales.
    """
    for node in list(graph):
        if node.domain != DOMAIN:
            continue
        bits, shape = node.attributes["bits"].as_int(), tuple(node.attributes["shape"].as_ints())
        packed = node.inputs[0]
        assert packed is not None  # `_node` demands it
        assert packed.name is not None
        assert packed.const_value is not None, "constants are folded before"
        integers = unpack_integers(torch.from_numpy(packed.const_value.numpy()), bits, shape).numpy()
        groups = node.op_type == "DequantizeGroups"
        tensor = onnx_ir.tensor(integers.astype(ml_dtypes.int4) if groups and bits <= 4 else integers)
        stored = onnx_ir.Value(
            name=packed.name, const_value=tensor, type=onnx_ir.TensorType(tensor.dtype), shape=onnx_ir.Shape(shape)
        )
        nodes, result = [], stored
        if groups:
            scale = node.inputs[1]
            assert scale is not None
            assert scale.shape is not None
            cast = onnx_ir.node("Cast", [scale], {"to": onnx_ir.DataType.FLOAT})
            block = {"axis": 1, "block_size": shape[1] // scale.shape.numpy()[1]}
            nodes = [cast, onnx_ir.node("DequantizeLinear", [stored, cast.outputs[0]], block)]
            result = nodes[-1].outputs[0]
        onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, [result])
        if not packed.uses():
            del graph.initializers[packed.name]
        graph.register_initializer(stored)
