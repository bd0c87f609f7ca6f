"""A bare backbone in low-bit training, for its pre-training as a classifier.

BatchNorm is not folded there, because its statistics are still learned. Rounding is the same as after folding, which scales the
output channels of a weight: each has a step of its own. So only the float weights need to be kept. In the detector that takes
them, `quantize` folds the norms and finds the steps again by calibration.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from leandetr.errors import UserError
from leandetr.quantization.config import LowBit
from leandetr.quantization.grids import grid_of, has_negatives
from leandetr.quantization.layers.modules import GRID_INPUT, LayerPlan, is_quantizable, replace_modules
from leandetr.quantization.layers.trainable import trainable_layer
from leandetr.quantization.passes.observers import Observer, observer_of


@torch.no_grad()
def round_backbone(backbone: nn.Module, config: LowBit, batches: Iterable[Tensor]) -> int:
    """Replace the Linear and Conv2d of a backbone by trainable ones that round weights and inputs, in place.

    Args:
        backbone: takes pixel values; it runs as in training, since untrained norms have no statistics.
        config: its widths, as in a detector.
        batches: (B, 3, H, W) pixels, by which the steps are set.

    Returns how many layers were replaced. Raises UserError for batches that reach no layer.
    """
    order: list[nn.Linear | nn.Conv2d] = []
    layers = [module for module in backbone.modules() if is_quantizable(module)]
    plans: dict[nn.Module, LayerPlan] = {}
    observers: dict[nn.Module, tuple[Observer, int]] = {}  # with the bits of the grid

    def read(layer: nn.Linear | nn.Conv2d, inputs: tuple[Tensor]) -> None:
        if layer not in observers:
            first = not any(isinstance(earlier, nn.Conv2d) for earlier in order) and isinstance(layer, nn.Conv2d)
            weight, bits = config.layer_bits(layer, first)
            plans[layer] = LayerPlan(weight_bits=weight, input=GRID_INPUT, input_bits=bits)
            observers[layer] = observer_of(config.grid(bits)), bits
            order.append(layer)
        observers[layer][0].update(inputs[0])

    handles = [layer.register_forward_pre_hook(read) for layer in layers]
    training = backbone.training
    backbone.train()
    try:
        for pixels in batches:
            backbone(pixels)
    finally:
        backbone.train(training)
        for handle in handles:
            handle.remove()
    if not order:
        raise UserError("low-bit: no layer of the backbone ran on the calibration images; give images and another backbone")
    replaced: dict[nn.Module, nn.Module] = {}
    for layer in order:
        replaced[layer] = trained = trainable_layer(layer, plans[layer])
        observer, bits = observers[layer]
        low, high = observer.range()
        trained.input.set(*grid_of(low, high, bits))
        trained.input.train_zero_point(has_negatives(low))
        trained.fill(layer)
    replace_modules(backbone, replaced)
    return len(order)
