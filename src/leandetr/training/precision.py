"""Boxes in single precision while everything else is computed in half; and TF32.

bfloat16 has 8 bits of mantissa: a coordinate in the right half of an image would be a multiple of 1/256 of it, too coarse for
small boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from leandetr.detectors.detector import Detector


def keep_boxes_precise(detector: Detector) -> None:
    """Have the family's `box_layers` leave autocast; without autocast nothing changes."""
    for name, part in detector.named_modules():
        computes = isinstance(part, nn.Linear) or next(part.parameters(), None) is None
        if computes and any(fnmatchcase(name, pattern) for pattern in detector.family.box_layers):
            left = _LeftAutocast()
            part.register_forward_pre_hook(left.enter)
            part.register_forward_hook(left.leave, always_call=True)


@contextmanager
def products_in_tf32() -> Iterator[None]:
    """Matrix products of single precision on a GPU's tensor cores, where it has such: factors of 11 bits, sums of 24. PyTorch
    computes convolutions so by default."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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
