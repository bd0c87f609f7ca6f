"""Weights of fewer than 8 bits with one scale a group of neighbours along the input dimension.

    w ~ scale_group * q,    -2^(b-1) <= q < 2^(b-1)

Such weights are only stored as integers and multiplied as floats, so nothing asks for a symmetric range. A group's scale, in
float16, is the one of a few candidates with the least sum of (w - scale q)^2: the largest weight, seldom and alone, need not
be met. With calibration every square counts as much as its input's, and `rounding.py` rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leandetr.quantization.grids import signed
from leandetr.quantization.layers.lsq import learned_rounding
from leandetr.quantization.layers.rounding import InputMoment, round_weights, within_steps

#: fewer weights than this are not worth a scale of their own
SMALLEST_GROUP = 16

# Of the scale at which the largest weight of a group is met by the largest integer; at 7/8 of it, -8 meets one of 4 bits
CANDIDATES = tuple(1 - 0.02 * step for step in range(16))


def group_size_of(layer: nn.Linear | nn.Conv2d, asked: int) -> int | None:
    """The largest group of at most `asked` that divides a layer's input channels; None where that is under 16.

    >>> group_size_of(nn.Linear(256, 8), 64), group_size_of(nn.Conv2d(144, 8, 1), 64), group_size_of(nn.Linear(4, 8), 64)
    (64, 48, None)
    """
    inputs = layer.weight.shape[1]
    return next((size for size in range(min(asked, inputs), SMALLEST_GROUP - 1, -1) if inputs % size == 0), None)


def quantize_groups(weight: Tensor, bits: int, group_size: int, moment: InputMoment | None = None) -> tuple[Tensor, Tensor]:
    """weight: (out, in, ...) float32, in a multiple of the group size -> integers, int8 of the same shape, and scales
    (out, in / group_size, ...) float16."""
    groups = weight.unflatten(1, (-1, group_size))  # (out, groups, size, ...)
    counts = 1.0 if moment is None else moment.importance().unflatten(0, (-1, group_size))
    largest = groups.abs().amax(2) / signed(bits)[1]
    best = torch.full_like(largest, torch.inf)
    scale = torch.ones_like(largest)
    for ratio in CANDIDATES:
        candidate = (ratio * largest).half().float()
        candidate = torch.where(candidate == 0, torch.ones_like(candidate), candidate)
        error = (counts * (groups - _rounded(groups, candidate, bits) * candidate.unsqueeze(2)).square()).sum(2)
        scale = torch.where(error < best, candidate, scale)
        best = torch.minimum(error, best)
    if moment is None:
        integers = _rounded(groups, scale, bits).to(torch.int8).reshape(weight.shape)
    else:
        integers = round_weights(weight, scale.repeat_interleave(group_size, 1), bits, moment.matrix)
    return integers, scale.half()


class GroupRounding(nn.Module):
    """A weight rounded to the grids of its groups, through which gradients pass as they are: to choose the integers by. A
    parametrisation of the layer's weight.

    Args:
        scale: (out, in / group, ...) float16, as of `quantize_groups`.
        bits: of the integers.
    """

    scale: Tensor

    def __init__(self, scale: Tensor, bits: int) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in, ...) -> the same shape."""
        groups = weight.unflatten(1, (self.scale.shape[1], -1))
        step = self.scale.float().unsqueeze(2)
        return learned_rounding(groups, step, step.new_zeros(()), *signed(self.bits)).flatten(1, 2)

    def integers(self, weight: Tensor) -> Tensor:
        """int8 of the weight's shape."""
        groups = weight.unflatten(1, (self.scale.shape[1], -1))
        return _rounded(groups, self.scale.float(), self.bits).to(torch.int8).reshape(weight.shape)

    def begin(self, weight: Tensor, integers: Tensor) -> Tensor:
        """Near the weight, and rounded to these integers."""
        groups, chosen = (tensor.unflatten(1, (self.scale.shape[1], -1)) for tensor in (weight, integers))
        return within_steps(groups, self.scale.float().unsqueeze(2), chosen).reshape(weight.shape)


def _rounded(groups: Tensor, scale: Tensor, bits: int) -> Tensor:
    return torch.clamp(torch.round(groups / scale.unsqueeze(2)), *signed(bits))
