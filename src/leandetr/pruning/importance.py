"""What a unit matters, and what it costs.

Taylor (Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017, eq. 8): every unit
is multiplied by a gate m = 1, and

    I = sum over images | dL/dm |,    dL/dm = sum over a of a dL/da

for all values a of it (of tokens or pixels, of a head's channels) and the family's own detection loss L: to first order, what
the loss would change without it, in whatever layer it is. Magnitude: the sum of squares of its weights, rows and columns, over
the mean of its layer, since weights of layers differ in size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from leandetr.detectors.detector import Detector
from leandetr.detectors.multiply_adds import multiply_adds_of
from leandetr.detectors.units import Units
from leandetr.structures import Batch


def taylor(
    detector: Detector, found: Mapping[str, Units], batches: Iterable[Batch], step: Callable[[], object]
) -> dict[str, Tensor]:
    """Name -> importance (K,) of its units, at least 0.

    Args:
        detector: float, in evaluation mode; none of its parameters requires a gradient.
        found: units of its model by name.
        batches: of one image each, so that gradients of several do not cancel each other.
        step: called after every batch.
    """
    device = next(detector.parameters()).device
    ones = {name: torch.ones(units.count, device=device, requires_grad=True) for name, units in found.items()}
    sums = {name: torch.zeros(units.count, device=device) for name, units in found.items()}
    handles = [handle for name, units in found.items() for handle in units.multiply(ones[name])]
    try:
        for batch in batches:
            moved = send_to_device(batch, device)
            output = detector(moved["pixel_values"], moved["pixel_mask"], moved["labels"])
            assert output.loss is not None  # there are labels
            gradients = torch.autograd.grad(output.loss, list(ones.values()), allow_unused=True)
            for name, gradient in zip(ones, gradients, strict=True):
                if gradient is not None:
                    sums[name] += gradient.abs()
            step()
    finally:
        for handle in handles:
            handle.remove()
    return {name: importance.cpu() for name, importance in sums.items()}


@torch.no_grad()
def magnitude(found: Mapping[str, Units]) -> dict[str, Tensor]:
    """Name -> importance (K,) of its units, at least 0, 1 on average."""
    squares = {name: units.magnitude().cpu() for name, units in found.items()}
    return {name: values / values.mean().clamp(min=torch.finfo(values.dtype).tiny) for name, values in squares.items()}


def costs(model: nn.Module, found: Mapping[str, Units], image_size: tuple[int, int]) -> dict[str, float]:
    """Name -> the multiply-adds of one image of (height, width) that leave with one unit, as long as all others are there."""
    layers = {part.layer for units in found.values() for part in units.parts}
    modules = list(layers | {units.whole for units in found.values() if units.whole is not None})
    counted = dict(zip(modules, multiply_adds_of(model, modules, image_size), strict=True))
    return {name: _cost(units, counted) for name, units in found.items()}


def _cost(units: Units, counted: Mapping[nn.Module, int]) -> float:
    if units.whole is not None:
        return counted[units.whole] / units.count
    return sum(counted[part.layer] * part.size / part.width for part in units.parts)
