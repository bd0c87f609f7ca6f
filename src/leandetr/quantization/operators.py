"""The three operators that quantized layers are made of, and what each becomes in an ONNX graph (opset 21).

| operator | PyTorch | ONNX |
|---|---|---|
| `fake_quantize` | rounds activations to a static grid | QuantizeLinear, DequantizeLinear; Clip before them for narrow grids |
| `dequantize` | integer weights or biases times their scales | DequantizeLinear on an integer initializer |
| `dynamic_linear` | integer product, grid taken from the input | DynamicQuantizeLinear, MatMulInteger, Cast, Mul |

PyTorch computes the integers that an engine computes and keeps them in float32, so both differ by the rounding of sums alone.
"""

from collections.abc import Callable

import onnx_ir
import torch
from onnxscript import opset21 as op
from torch import Tensor
from torch.nn import functional as F

STORAGE = (0, 255)  # what QuantizeLinear clamps to by itself: activations are stored in uint8


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
def _(x, scale, zero_point, low, high):
    return torch.empty_like(x)


@torch.library.custom_op("leandetr::dequantize", mutates_args=())
def dequantize(q: Tensor, scale: Tensor) -> Tensor:
    """q: (out, ...) int8 weights or (out,) int32 biases; scale: (out,) float32 -> q * scale, float32, of q's shape."""
    return q.to(scale.dtype) * scale.reshape(-1, *[1] * (q.ndim - 1))


@dequantize.register_fake
def _(q, scale):
    return torch.empty_like(q, dtype=scale.dtype)


@torch.library.custom_op("leandetr::dynamic_linear", mutates_args=())
def dynamic_linear(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """Integer product of x, quantized now and as a whole, and an integer weight.

    The grid is ONNX's DynamicQuantizeLinear: it spans the range of x widened to hold 0, in 256 steps,

        scale = (max - min) / 255,    zero_point = round(-min / scale)

    so it depends on everything in x: an image's result depends on the images beside it in a batch.

    Args:
        x: (..., in) float32.
        weight: (out, in) int8.
        weight_scale: (out,) float32.

    Returns:
        (..., out) float32.
    """
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round((-low / scale).clamp(*STORAGE))
    integers = torch.clamp(torch.round(x / scale) + zero, *STORAGE) - zero
    return F.linear(integers, weight.to(x.dtype)) * (scale * weight_scale)


@dynamic_linear.register_fake
def _(x, weight, weight_scale):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def onnx_translations() -> dict[Callable, Callable]:
    """Operator -> its ONNX form, for the `custom_translation_table` of `torch.onnx.export(..., dynamo=True,
    opset_version=21)`."""
    return {
        torch.ops.leandetr.fake_quantize.default: _onnx_fake_quantize,
        torch.ops.leandetr.dequantize.default: _onnx_dequantize,
        torch.ops.leandetr.dynamic_linear.default: _onnx_dynamic_linear,
    }


def _onnx_fake_quantize(x, scale, zero_point, low: int, high: int):
    if (low, high) != STORAGE:
        zero = op.Cast(zero_point, to=onnx_ir.DataType.FLOAT)
        x = op.Clip(x, op.Mul(scale, op.Sub(float(low), zero)), op.Mul(scale, op.Sub(float(high), zero)))
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero_point), scale, zero_point)


def _onnx_dequantize(q, scale):
    # ONNX Runtime recognises an integer Gemm only where the zero points of the weight are written out
    zeros = onnx_ir.tensor(torch.zeros(tuple(scale.shape), dtype=_TORCH[q.dtype]).numpy())
    return op.DequantizeLinear(q, scale, op.Constant(value=zeros), axis=0)


_TORCH = {onnx_ir.DataType.INT8: torch.int8, onnx_ir.DataType.INT32: torch.int32}


def _onnx_dynamic_linear(x, weight, weight_scale):
    integers, scale, zero_point = op.DynamicQuantizeLinear(x)
    product = op.MatMulInteger(integers, op.Transpose(weight, perm=[1, 0]), zero_point)
    return op.Mul(op.Cast(product, to=onnx_ir.DataType.FLOAT), op.Mul(scale, weight_scale))
