"""A quantized graph in PyTorch's own quantize and dequantize operators, which the compilers of ExecuTorch and LiteRT know.

On a processor both engines multiply integers by XNNPACK. It wants int8 with a zero point on both sides of a product, and
int8 around 0, one scale an output channel, for weights:

- a grid of uint8 is the same grid of int8, q - 128 with zero point z - 128;
- biases are floats: the engines round them to the units of the product, whose multiples they are;
- weights that are multiplied with floats are floats.

No integer changes but by the engines' own rounding of sums.
"""

from __future__ import annotations

import operator
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - it defines the operators of quantized_decomposed

from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.quantization.config import Static
from leandetr.quantization.config.post_training import XNNPACK
from leandetr.quantization.layers import operators  # noqa: F401 - it defines those of leandetr

aten, ours, decomposed = torch.ops.aten, torch.ops.leandetr, torch.ops.quantized_decomposed
PRODUCTS = (aten.linear.default, aten.conv2d.default)
SHIFT, LOW, HIGH = 128, -128, 127  # from uint8 to int8


def check_xnnpack(detector: Detector, path: Path, engine: str) -> None:
    """Raises UserError where a quantized detector has no grids as XNNPACK needs them. engine: as the sentence names it."""
    record = getattr(detector.config, "quantization_config", None)
    if record is not None and (record.scheme["scheme"] != Static.name or record.scheme.get("target") != XNNPACK):
        raise UserError(
            f"{path}: {engine} multiplies integers between grids on both sides, which this detector has not; quantize the "
            f"float one with --scheme static --set target={XNNPACK}, or export the float one"
        )


def multiplies_integers(node: fx.Node, constants: Container[fx.Node]) -> bool:
    """Whether a node dequantizes weights, and a photograph's activations come off a grid wherever they are multiplied."""
    products = [user for user in node.users if user not in constants]
    return node.target is ours.dequantize.default and bool(products) and all(_on_grids(user, node) for user in products)


def _on_grids(product: fx.Node, weight: fx.Node) -> bool:
    if product.target not in PRODUCTS or product.args[1] is not weight:
        return False
    x = product.args[0]
    return isinstance(x, fx.Node) and x.target is ours.fake_quantize.default


def spell_integers(module: fx.GraphModule, changed: Container[fx.Node]) -> None:
    """Replace our operators in a folded graph (`folding.py`), in place. changed: what operators write into.

    A tensor that goes to one grid in several places is rounded once, since XNNPACK refuses a part that does it twice. Each
    reader has the way back to floats for itself: a shared one may tie the parts that XNNPACK runs to each other in a circle.
    """
    rounded: dict[tuple, fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.target is ours.fake_quantize.default:
            x, scale, zero_point, low, high = node.args
            assert (low, high) == (LOW + SHIFT, HIGH + SHIFT), "a grid for XNNPACK has 8 bits"
            step, zero = (attribute(module, each).item() for each in (scale, zero_point))
            grid = (step, int(zero) - SHIFT, LOW, HIGH, torch.int8)
            if (x, grid) not in rounded or x in changed:
                rounded[x, grid] = _inserted(module, node, decomposed.quantize_per_tensor.default, (x, *grid), torch.int8)
            args = (rounded[x, grid], *grid)
            for user in list(node.users):
                back = _inserted(module, node, decomposed.dequantize_per_tensor.default, args, torch.float32)
                user.replace_input_with(node, back)
        elif node.target is ours.dequantize.default:
            node.replace_all_uses_with(_weight(module, node))
    module.graph.eliminate_dead_code()


def _weight(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    weight, scale = node.args
    zeros = torch.zeros(len(attribute(module, scale)), dtype=torch.int64)
    name = f"zeros_{len(zeros)}"
    module.register_buffer(name, zeros)
    with module.graph.inserting_before(node):
        constant = module.graph.get_attr(name)
    args = (weight, scale, constant, 0, -HIGH, HIGH, torch.int8)
    return _inserted(module, node, decomposed.dequantize_per_channel.default, args, torch.float32)


def _inserted(module: fx.GraphModule, node: fx.Node, target: Any, args: tuple[Any, ...], kind: torch.dtype) -> fx.Node:
    """A new node in front of one whose shape it has."""
    with module.graph.inserting_before(node):
        new = module.graph.call_function(target, args)
    new.meta = dict(node.meta) | {"val": node.meta["val"].to(kind)}
    return new


def attribute(module: nn.Module, node: Any) -> Any:
    """The tensor or module that a node of kind `get_attr` names."""
    return operator.attrgetter(node.target)(module)
