"""Which opsets of ONNX a file can be written in, and how one of 18, PyTorch's oldest, becomes one of 17, which older engines
read (TensorRT 8 on a Jetson).

What differs between the two and detectors use are reductions, whose axes were an attribute, and Split; GroupNormalization is
spelled out in every file (`rewrites.py`). LayerNormalization exists since 17, GridSample since 16.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir

from leandetr.deployment.rewrites import value_of
from leandetr.errors import UserError

OPSET = 21  # the first with 4-bit integers and scales of groups
TRACED = 18  # the oldest that PyTorch's exporter writes without translating back
OLDEST = 17
IR_OF_OLDEST = 8  # the version of the file format that came with it


def check_opset(path: Path, opset: int, stored_integers: bool) -> None:
    """Raises UserError for an opset that is not written, and for one without the types of integers that are stored as such."""
    if stored_integers and opset < OPSET:
        raise UserError(f"{path}: opset {opset} lacks the types of a quantized model; give {OPSET} or more")
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST <= opset <= newest:
        raise UserError(f"{path}: opset {opset} cannot be written; give {OLDEST} to {newest}, best {OPSET}")


def lower(model: onnx_ir.Model) -> None:
    """Make an opset-17 model of one of opset 18, in place.

    Raises UserError for an operator that only 18 has.
    """
    for node in model.graph.all_nodes():
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
            _axes_as_attribute(node)
        elif node.op_type == "Split":
            node.attributes.pop("num_outputs", None)  # without sizes, opset 17 takes equal parts
        elif not _is_older(node):
            raise UserError(f"{node.op_type} as this model uses it exists since opset {TRACED}; give --opset {TRACED}")
    model.graph.opset_imports[""] = OLDEST
    model.ir_version = IR_OF_OLDEST


def _axes_as_attribute(node: onnx_ir.Node) -> None:
    axes = value_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        if axes is None:
            raise UserError(f"{node.op_type} with axes that are computed exists since opset {TRACED}; give --opset {TRACED}")
        node.attributes["axes"] = onnx_ir.AttrInt64s("axes", axes.tolist())
    node.resize_inputs(1)
    node.attributes.pop("noop_with_empty_axes", None)


def _is_older(node: onnx_ir.Node) -> bool:
    """Whether a node of opset 18 means the same in 17: it is the same operator, or uses nothing that came with 18. What it says
    of that but leaves at its default is taken away."""
    try:
        old = onnx.defs.get_schema(node.op_type, OLDEST, "")
    except onnx.defs.SchemaError:
        return False
    new = onnx.defs.get_schema(node.op_type, TRACED, "")
    if old.since_version == new.since_version:
        return True
    for name in set(node.attributes) - set(old.attributes):
        default = onnx.helper.get_attribute_value(new.attributes[name].default_value)
        if node.attributes[name].value == (default.decode() if isinstance(default, bytes) else default):
            del node.attributes[name]  # 17 does just that
    reduction = node.attributes.get_string("reduction", "none")
    return (
        len(node.inputs) <= len(old.inputs) and set(node.attributes) <= set(old.attributes) and reduction not in ("max", "min")
    )
