"""What low bits buy in theory: multiply-adds by precision, and the speed-up of hardware that gains with every bit.

No processor here multiplies 4-bit numbers faster than 8-bit ones, so this is held apart from everything measured.

The convention: a product of a W-bit and an A-bit number takes max(W, A) / 32 of the time of one in float32. Q-DETR's abstract
says 6.6 times for its 4-bit DETR (weights and inputs 4 bits, operands of attention 8, first layer and heads wider) without
saying how it counts; of the usual conventions this is the one that can give it: all at 4 bits would be 8 times, while
W * A / 64, as for binary networks, could not exceed 4. For DETR with a ResNet-50 at 800 x 1066 it gives 7.3 times with the
layers that are quantized here by default, and 4.9 with the ResNet's shortcut convolutions in float.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from leandetr.detectors.attention import AttentionSlots
from leandetr.detectors.detector import Detector
from leandetr.detectors.multiply_adds import multiply_adds
from leandetr.quantization.layers.modules import AT_RUN_TIME, FLOAT_INPUT, GriddedActivation, QuantizedLayer
from leandetr.quantization.layers.trainable import TrainableActivation, TrainableLayer

FLOAT_BITS = 32


@dataclass(frozen=True)
class Cost:
    """Of one image.

    multiply_adds: in matrix products, convolutions and attention, by the wider operand's bits (32 for float); sampling, norms
    and activations are not counted. weight_bits: of all weights together, scales and biases not counted. float_share: of the
    weights, in [0, 1], that stayed float.
    """

    multiply_adds: dict[int, int]
    weight_bits: int
    float_share: float

    @property
    def speedup(self) -> float:
        """Theoretical, over the same model in float32."""
        whole = sum(self.multiply_adds.values())
        return whole / sum(count * bits / FLOAT_BITS for bits, count in self.multiply_adds.items())

    def __str__(self) -> str:
        parts = ", ".join(
            f"{count / 1e6:.0f} M {'float' if bits == FLOAT_BITS else f'{bits}-bit'}"
            for bits, count in sorted(self.multiply_adds.items())
        )
        return (
            f"multiply-adds: {parts}\n"
            f"theoretical speed-up {self.speedup:.2f}: a product of b bits takes b / 32 of a float one\n"
            f"weights: {self.weight_bits / 8e6:.2f} MB, {self.float_share:.1%} of them float"
        )


@torch.no_grad()
def theoretical_cost(detector: Detector, image_size: tuple[int, int] | None = None) -> Cost:
    """Let a detector, float or quantized, answer one empty image and count.

    image_size: (height, width); the preprocessing's by default, (256, 256) where that is not fixed.
    """
    size, model = image_size or detector.preprocessing.size or (256, 256), detector.model
    products = _Products(model)
    training = detector.training
    detector.eval()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.requires_grad_(False)
        found = multiply_adds(model, size)
    finally:
        detector.train(training)
        for parameter in learning:
            parameter.requires_grad_(True)
        for handle in products.handles:
            handle.remove()
    counted = products.counted
    counted[FLOAT_BITS] += max(0, found + products.unseen - counted.total())
    return Cost({bits: count for bits, count in counted.items() if count}, *_weights(model))


class _Products:
    """Those of a model's layers and attentions on grids, counted while it runs.

    counted: by the wider operand's bits. unseen: those inside operators that the counter of float products does not look into.
    """

    def __init__(self, model: nn.Module) -> None:
        self.counted: Counter[int] = Counter()
        self.unseen = 0
        self.handles = []
        for module in model.modules():
            if isinstance(module, QuantizedLayer | TrainableLayer):
                self.handles.append(module.register_forward_hook(self._count_layer))
            elif isinstance(module, AttentionSlots):
                self._watch_attention(module)

    def _count_layer(self, layer: QuantizedLayer | TrainableLayer, _inputs: tuple, output: Tensor) -> None:
        if layer.plan.input == FLOAT_INPUT:
            return
        shape = weight_shape(layer)
        positions = output.numel() // (output.shape[1] if len(shape) == 4 else output.shape[-1])
        products = positions * prod(shape)
        if layer.plan.input in AT_RUN_TIME:
            self.unseen += products
        self.counted[max(layer.plan.weight_bits, layer.plan.input_bits or 8)] += products

    def _watch_attention(self, slots: AttentionSlots) -> None:
        seen: dict[str, Any] = {}

        def remember(name: str, output: Tensor) -> None:
            seen[name] = output.shape
            if name == "value":  # the last of the four
                pairs = prod(seen["probabilities"])
                self.counted[max(bits["query"], bits["key"])] += pairs * seen["query"][-1]
                self.counted[max(bits["probabilities"], bits["value"])] += pairs * seen["value"][-1]

        parts = {name: getattr(slots, name) for name in ("query", "key", "probabilities", "value")}
        bits = {name: operand_bits(part) for name, part in parts.items()}
        if any(width != FLOAT_BITS for width in bits.values()):
            for name, part in parts.items():
                self.handles.append(part.register_forward_hook(lambda _m, _i, output, name=name: remember(name, output)))


def weight_shape(layer: QuantizedLayer | TrainableLayer) -> tuple[int, ...]:
    """Of the weight itself, also where it is stored packed."""
    return layer.shape if isinstance(layer, QuantizedLayer) else tuple(layer.weight.shape)


def operand_bits(slot: nn.Module) -> int:
    """Bits of an operand of attention."""
    if isinstance(slot, TrainableActivation):
        return slot.output.high.bit_length()
    return slot.output.bits if isinstance(slot, GriddedActivation) else FLOAT_BITS


def _weights(model: nn.Module) -> tuple[int, float]:
    """Bits of all weights of more than one dimension, and the share of these weights that are float."""
    quantized = {
        module.weight: (prod(weight_shape(module)), module.plan.weight_bits)
        for module in model.modules()
        if isinstance(module, QuantizedLayer | TrainableLayer)
    }
    left = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1 and parameter not in quantized)
    whole = left + sum(count for count, _ in quantized.values())
    return FLOAT_BITS * left + sum(count * bits for count, bits in quantized.values()), left / whole
