"""LiteRT's (formerly TensorFlow Lite's) `.tflite`, in float32 or with integers.

The file's one signature takes pixel_values (1, 3, H, W), normalised, float32 or, with integers, int8 on the grid that its
details name, and gives logits (1, N, C) and boxes (1, N, 4).
The metadata's text is the entry "leandetr.json" of a ZIP archive behind the graph, where TensorFlow Lite's own metadata keeps
associated files: interpreters pass over it, and `unzip` lists it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from leandetr.deployment.metadata import KEY, Metadata
from leandetr.deployment.silence import silenced
from leandetr.deployment.xnnpack import attribute, decomposed
from leandetr.errors import UserError
from leandetr.quantization.layers.operators import dequantize

MISSING = "this needs the package {}; install it with: pip install 'leandetr[litert]'"
ENTRY = f"{KEY}.json"
aten = torch.ops.aten
RESHAPING = (
    *(aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.contiguous.default),
    *(aten.transpose.int, aten.permute.default, aten.unsqueeze.default),
)


class Named(nn.Module):
    """A graph whose answers have names, which become those of the signature."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.detector = graph

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        logits, boxes = self.detector(pixel_values)
        return {"logits": logits, "boxes": boxes}


def write_litert(graph: fx.GraphModule, pixels: Tensor, metadata: Metadata, file: Path) -> None:
    """Write a detector's graph (`folding.py`) for photographs of the shape of `pixels` (1, 3, H, W), with its metadata.

    Raises UserError where litert-torch is not installed, and whatever it raises at operators that it does not know.
    """
    converter = _import_converter()
    weights = [node for node in graph.graph.nodes if node.target is decomposed.dequantize_per_channel.default]
    _round_floats(graph, weights)
    _join_on_one_grid(graph)
    setting = _static() if weights else None
    converted = converter.convert(Named(graph).eval(), sample_kwargs={"pixel_values": pixels}, quant_config=setting)
    file.write_bytes(converted.model_content())
    add_text(file, metadata.to_json())


def _round_floats(graph: fx.GraphModule, weights: Iterable[fx.Node]) -> None:
    """Let the compiler round floats to the weights' integers itself, in place: it takes none that are there already."""
    for node in weights:
        name = f"{node.name}_float"
        integers, scale = (attribute(graph, each) for each in node.args[:2])
        graph.register_buffer(name, dequantize(integers, scale))
        with graph.graph.inserting_before(node):
            floats = graph.graph.get_attr(name)
            rounded = graph.graph.call_function(decomposed.quantize_per_channel.default, (floats, *node.args[1:]))
        node.update_arg(0, rounded)
    graph.recompile()


def _join_on_one_grid(graph: fx.GraphModule) -> None:
    """Put what is joined onto one grid as wide as all of theirs, in place: the compiler would take the grid of one of them, and
    cut off what of the others lies outside."""
    for join in [node for node in graph.graph.nodes if node.target is aten.cat.default]:
        parts = join.args[0]
        found = [_grid_of(part) for part in parts]
        grids = {each for each in found if each is not None}
        if None in found or len(grids) < 2:  # with a part that is on none, floats are joined
            continue
        low, high = min(s * (least - z) for s, z, least, *_ in grids), max(s * (most - z) for s, z, _, most, *_ in grids)
        _, _, least, most, kind = next(iter(grids))
        scale = (high - low) / (most - least)
        grid = (scale, round(least - low / scale), least, most, kind)
        with graph.graph.inserting_before(join):
            integers = [graph.graph.call_function(decomposed.quantize_per_tensor.default, (part, *grid)) for part in parts]
            floats = [graph.graph.call_function(decomposed.dequantize_per_tensor.default, (each, *grid)) for each in integers]
        join.update_arg(0, floats)
    graph.recompile()


def _grid_of(node: fx.Node) -> tuple[Any, ...] | None:
    """Of what was dequantized and at most put into another shape since."""
    while node.target in RESHAPING:
        node = node.all_input_nodes[0]
    return node.args[1:] if node.target is decomposed.dequantize_per_tensor.default else None


def _static() -> Any:
    """What tells the compiler that the graph's grids are to become its own."""
    from litert_torch.quantize import pt2e_quantizer, quant_config

    setting = pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True)
    return quant_config.QuantConfig(pt2e_quantizer=pt2e_quantizer.PT2EQuantizer().set_global(setting))


def open_interpreter(path: Path, threads: int) -> Any:
    """The `ai_edge_litert.interpreter.Interpreter` of a file.

    Raises UserError where ai-edge-litert is not installed, or the file is none of LiteRT's.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a LiteRT file")
    interpreter = _import_interpreter()
    with silenced():
        try:
            return interpreter(model_path=str(path), num_threads=threads)
        except ValueError as error:
            raise UserError(f"{path} is not a LiteRT file or is truncated; export it again") from error


def add_text(file: Path, text: str) -> None:
    """Put the metadata's text behind a file's graph."""
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(ENTRY, text)


def text_of(path: Path) -> str | None:
    """The metadata that `write_litert` left; None where something else wrote the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(ENTRY).decode()
    except (zipfile.BadZipFile, KeyError):
        return None


def check_tflite(path: Path) -> None:
    """Raises UserError where `path` is no name for a LiteRT file, or the packages are not installed."""
    if path.suffix != ".tflite":
        raise UserError(f"{path}: a LiteRT file ends in .tflite; name it so")
    _import_interpreter()


def _import_converter() -> Any:
    try:
        import litert_torch
    except ImportError as error:
        raise UserError(MISSING.format("litert-torch")) from error
    return litert_torch


def _import_interpreter() -> Any:
    try:
        with silenced():
            from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise UserError(MISSING.format("ai-edge-litert")) from error
    return Interpreter
