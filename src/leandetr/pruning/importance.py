"""What a hidden unit of a feed-forward layer matters.

Taylor (Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017, eq. 8): every unit
is multiplied by a gate m = 1, and

    I = sum over images | dL/dm |,    dL/dm = sum over tokens a dL/da

for its activation a and the family's own detection loss L: to first order, what the loss would change without it.
Magnitude: the sum of squares of its weights, rows and column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from leandetr.detectors.detector import Detector
from leandetr.detectors.feed_forward import FeedForward, feed_forward_layers
from leandetr.structures import Batch


def taylor(detector: Detector, batches: Iterable[Batch], step: Callable[[], object]) -> dict[str, Tensor]:
    """Layer -> importance (K,) of its units, at least 0.

    Args:
        detector: float, in evaluation mode; none of its parameters requires a gradient.
        batches: of one image each, so that gradients of several do not cancel each other.
        step: called after every batch.
    """
    layers = feed_forward_layers(detector.model)
    device = next(detector.parameters()).device
    gates = {name: torch.ones(layer.width, device=device, requires_grad=True) for name, layer in layers.items()}
    found = {name: torch.zeros(layer.width, device=device) for name, layer in layers.items()}
    handles = [_gated(layer, gates[name]) for name, layer in layers.items()]
    try:
        for batch in batches:
            moved = send_to_device(batch, device)
            output = detector(moved["pixel_values"], moved["pixel_mask"], moved["labels"])
            assert output.loss is not None  # there are labels
            gradients = torch.autograd.grad(output.loss, list(gates.values()), allow_unused=True)
            for name, gradient in zip(gates, gradients, strict=True):
                if gradient is not None:
                    found[name] += gradient.abs()
            step()
    finally:
        for handle in handles:
            handle.remove()
    return {name: importance.cpu() for name, importance in found.items()}


@torch.no_grad()
def magnitude(detector: Detector) -> dict[str, Tensor]:
    """Layer -> importance (K,) of its units, at least 0."""
    return {name: _squares(layer).cpu() for name, layer in feed_forward_layers(detector.model).items()}


@torch.no_grad()
def tokens(detector: Detector, image_size: tuple[int, int]) -> dict[str, int]:
    """Layer -> how many tokens or queries it computes of one image of (height, width)."""
    layers = feed_forward_layers(detector.model)
    counted = dict.fromkeys(layers, 0)

    def count(name: str, given: Tensor) -> None:
        counted[name] += given.numel() // given.shape[-1]

    handles = [
        layer.out.register_forward_pre_hook(lambda _linear, args, name=name: count(name, args[0]))
        for name, layer in layers.items()
    ]
    try:
        detector.model(pixel_values=torch.zeros(1, 3, *image_size, device=next(detector.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return counted


def _gated(layer: FeedForward, gate: Tensor) -> torch.utils.hooks.RemovableHandle:
    return layer.out.register_forward_pre_hook(lambda _linear, args: (args[0] * gate,))


def _squares(layer: FeedForward) -> Tensor:
    def rows(linear: nn.Linear) -> Tensor:
        return linear.weight.square().sum(1)

    return sum(map(rows, layer.into), start=layer.out.weight.square().sum(0))
