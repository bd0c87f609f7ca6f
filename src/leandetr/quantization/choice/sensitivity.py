"""What quantizing a layer in one way or another does to that layer's own output, measured on calibration images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from leandetr.detectors.detector import Detector
from leandetr.quantization.config import FLOAT, Scheme, WeightOnly, calibration_images
from leandetr.quantization.layers.modules import GIVEN_INPUT, QuantizedLayer
from leandetr.quantization.passes.apply import apply
from leandetr.structures import Batch

Errors = dict[str, dict[str, float]]


def measure_layers(
    detector: Detector, candidates: Mapping[str, Scheme], batches: Iterable[Batch]
) -> tuple[Errors, dict[str, dict[str, int]]]:
    """The relative squared error of every layer's output under every candidate, all layers before it being float:

        error = sum (y - y_quantized)^2 / sum y^2

    Args:
        detector: a float detector.
        candidates: name -> scheme, which decides as ever which layers it quantizes.
        batches: as the detector takes them, read anew for every candidate (a list or a loader). Schemes with calibration read
            as many images as they ask for; the error is measured on all. One candidate's model is held at a time, besides the
            float one.

    Returns:
        layer -> candidate -> error, for the layers that a candidate quantizes, and likewise the bytes of the layer's tensors;
        the names are those of the quantized model's record.

    Raises UserError as `quantize` does.
    """
    plain = apply(detector, WeightOnly(overrides={"*": FLOAT}))  # its norms folded, as under every scheme
    errors: Errors = {}
    sizes: dict[str, dict[str, int]] = {}
    for name, scheme in candidates.items():
        quantized = apply(detector, scheme, batches if calibration_images(scheme) else (), by_layer=True)
        asked = quantized.config.quantization_config.as_asked
        layers = {layer: cast("QuantizedLayer", quantized.model.get_submodule(layer)) for layer in asked}
        del quantized
        for layer, error in _compare(plain.model, layers, batches).items():
            errors.setdefault(layer, {})[name] = error
            sizes.setdefault(layer, {})[name] = bytes_of(layers[layer])
    return errors, sizes


def bytes_of(module: nn.Module) -> int:
    """Of a module's tensors as they are stored, each once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in module.state_dict().values()}.values())


@torch.no_grad()
def _compare(model: nn.Module, layers: Mapping[str, QuantizedLayer], batches: Iterable[Batch]) -> dict[str, float]:
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in layers}  # of squared errors, of squares

    def reader(name: str) -> Callable[..., None]:
        alone = _alone(layers[name])

        def read(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            sums[name] += torch.stack([(alone(inputs[0]) - output).square().sum(), output.square().sum()]).double().cpu()

        return read

    handles = [model.get_submodule(name).register_forward_hook(reader(name)) for name in layers]
    device = next(model.parameters()).device
    try:
        for batch in batches:
            model(pixel_values=batch["pixel_values"].to(device), pixel_mask=batch["pixel_mask"].to(device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: float(error / total) if total > 0 else 0.0 for name, (error, total) in sums.items()}


def _alone(layer: QuantizedLayer) -> Callable[[Tensor], Tensor]:
    """A layer that puts its input on the grid itself, if another module did so in the model."""

    def run(x: Tensor) -> Tensor:
        return layer(layer.input(x)) if layer.input is not None and layer.plan.input == GIVEN_INPUT else layer(x)

    return run
