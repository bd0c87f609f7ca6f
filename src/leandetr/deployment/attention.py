"""Attention as the engines take it fastest: the exporter's own form computes at every call how two axes are swapped."""

from collections.abc import Callable
from typing import Any

import onnx_ir
import torch
from onnx_ir import Value
from onnxscript import opset21

op: Any = opset21  # its types are of tensors computed at once; here the same calls build a graph of values


def attention_translations() -> dict[Callable, Callable]:
    """For the `custom_translation_table` of `torch.onnx.export(..., dynamo=True)`."""
    return {torch.ops.aten.scaled_dot_product_attention.default: _attention}


def _attention(  # noqa: PLR0913 - the operator's own arguments
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """Of (B, heads, L, E) by (B, heads, S, E): a detector has no causal attention, shares no keys and runs without dropout."""
    assert not any((dropout_p, is_causal, enable_gqa))
    assert query.shape is not None
    assert query.dtype is not None
    width = query.shape[-1]
    assert isinstance(width, int)
    step = onnx_ir.tensor(width**-0.5 if scale is None else scale, query.dtype)
    scores = op.MatMul(op.Mul(query, op.Constant(value=step)), op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None and attn_mask.dtype == onnx_ir.DataType.BOOL:
        least = onnx_ir.tensor(query.dtype.min, query.dtype)
        scores = op.Where(attn_mask, scores, op.Constant(value=least))
    elif attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)
