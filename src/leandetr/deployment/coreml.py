"""Core ML's `.mlpackage`, an ML program in float32 or float16 for Apple's devices. It is written anywhere and runs there alone.

Its input "image" is a picture, RGB, of the detector's size; the normalisation is in the graph. Its outputs are logits (1, N, C)
and boxes (1, N, 4). The metadata's text is the entry "leandetr" of the model's user-defined metadata.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from leandetr.deployment.metadata import KEY, Metadata, scheme_of
from leandetr.deployment.silence import silenced
from leandetr.deployment.xnnpack import attribute
from leandetr.detectors.detector import Detector
from leandetr.errors import UserError
from leandetr.structures import Preprocessing

MISSING = "this needs the package coremltools; install it with: pip install 'leandetr[coreml]'"
MANIFEST = "Manifest.json"  # every package has one
AXES = 5  # of a tensor, at most
aten = torch.ops.aten
RESHAPING = (
    *(aten.view.default, aten.reshape.default, aten.flatten.using_ints),
    *(aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims),
)
WITH_AXES = {aten.transpose.int: (1, 2), aten.slice.Tensor: (1,)}


class FromBytes(nn.Module):
    """A graph that takes a picture's values, (1, 3, H, W) from 0 to 255, in place of normalised ones."""

    scale: Tensor
    shift: Tensor

    def __init__(self, graph: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.detector = graph
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (preprocessing.mean, preprocessing.std))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes = self.detector(image * self.scale + self.shift)
        return logits, boxes


def write_coreml(graph: fx.GraphModule, pixels: Tensor, metadata: Metadata, folder: Path) -> None:
    """Write a detector's graph (`folding.py`) for photographs of the shape of `pixels` (1, 3, H, W), with its metadata; where
    that says half, all of it in float16, as Apple's neural engine computes.

    Raises UserError where coremltools is not installed, and whatever it raises at operators that it does not know.
    """
    tools = _import_tools()
    _drop_sixth_axis(graph)
    exported = torch.export.export(FromBytes(graph, metadata.preprocessing).eval(), (pixels,), strict=False)
    program = exported.run_decompositions({})
    for node in list(program.graph.nodes):
        if node.target is aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    model = tools.convert(
        program,
        inputs=[tools.ImageType(name="image", shape=tuple(pixels.shape), color_layout=tools.colorlayout.RGB)],
        outputs=[tools.TensorType(name="logits"), tools.TensorType(name="boxes")],
        convert_to="mlprogram",
        compute_precision=tools.precision.FLOAT16 if metadata.half else tools.precision.FLOAT32,
        minimum_deployment_target=tools.target.iOS16,
        skip_model_load=True,
    )
    model.user_defined_metadata[KEY] = metadata.to_json()
    named = folder.with_name(f"{folder.name}.mlpackage")  # it wants this ending
    model.save(str(named))
    (named / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)  # of a program traced by PyTorch
    named.rename(folder)


def _drop_sixth_axis(module: fx.GraphModule) -> None:
    """Tensors of six axes, the first of length 1, do without that one, in place: Core ML has no more than five."""
    dropped = [node for node in module.graph.nodes if _axes(node) > AXES and node.meta["val"].shape[0] == 1]
    for node in [each for each in module.graph.nodes if each in dropped or any(of in dropped for of in each.all_input_nodes)]:
        shape = list(node.meta["val"].shape)[1 if node in dropped else 0 :]
        if node.op == "get_attr":
            module.register_buffer(f"{node.name}_of_five", attribute(module, node)[0])
            node.target = f"{node.name}_of_five"
        elif node.target in RESHAPING:
            node.target, node.args, node.kwargs = aten.reshape.default, (node.args[0], shape), {}
        elif node.target is aten.select.int:
            x, axis, index = node.args
            with module.graph.inserting_before(node):
                chosen = module.graph.call_function(aten.select.int, (x, axis - 1 if axis > 0 else axis, index))
                node.replace_all_uses_with(module.graph.call_function(aten.reshape.default, (chosen, shape)))
            module.graph.erase_node(node)
        elif node.target is aten.permute.default:
            node.update_arg(1, [axis - 1 for axis in node.args[1] if axis > 0])
        elif node.target in WITH_AXES and node.args[0] in dropped:
            for place in WITH_AXES[node.target]:
                axis = node.args[place]
                node.update_arg(place, axis - 1 if axis >= 0 else axis)
    module.recompile()


def _axes(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else 0


def check_mlpackage(path: Path) -> None:
    """Raises UserError where `path` is no name for a Core ML package, or of another folder, or coremltools is not installed."""
    if path.suffix != ".mlpackage":
        raise UserError(f"{path}: a Core ML package ends in .mlpackage; name it so")
    if path.exists() and not (path / MANIFEST).is_file():
        raise UserError(f"{path} exists and is no Core ML package; name another one")
    _import_tools()


def check_float(detector: Detector, path: Path) -> None:
    """Raises UserError where a detector is quantized."""
    if (scheme := scheme_of(detector)) is not None:
        raise UserError(f"{path}: Core ML takes float detectors, and this one is {scheme}; export its float one")


def _import_tools() -> Any:
    try:
        with silenced():
            import coremltools
    except ImportError as error:
        raise UserError(MISSING) from error
    return coremltools
