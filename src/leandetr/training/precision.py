"""Boxes in single precision while everything else is computed in half.

bfloat16 has 8 bits of mantissa: a coordinate in the right half of an image would be a multiple of 1/256 of it, too coarse for
small boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: in the names of the linear layers that compute boxes, and the points that boxes are told from, in all families
BOXES = ("bbox_predictor", "bbox_embed", "box_head", "reference_points", "reference_predictor", "ref_point_head")
INTEGRAL = "integral"  # D-FINE's, from a distribution to a distance


def keep_boxes_precise(module: nn.Module) -> None:
    """Have the layers that compute boxes leave autocast; without autocast nothing changes."""
    for name, part in module.named_modules():
        if name.endswith(INTEGRAL) or (isinstance(part, nn.Linear) and any(word in name for word in BOXES)):
            left = _LeftAutocast()
            part.register_forward_pre_hook(left.enter)
            part.register_forward_hook(left.leave, always_call=True)


class _LeftAutocast:
    """The hooks of one layer: its inputs become float32, and autocast is off while it runs."""

    def __init__(self) -> None:
        self.entered: list[torch.autocast] = []

    def enter(self, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        off = torch.autocast(inputs[0].device.type, enabled=False)
        off.__enter__()
        self.entered.append(off)
        return tuple(value.float() for value in inputs)

    def leave(self, *_: object) -> None:
        self.entered.pop().__exit__(None, None, None)
