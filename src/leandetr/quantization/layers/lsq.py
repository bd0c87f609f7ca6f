"""Rounding to a grid whose step is learned: LSQ for weights, LSQ+ for activations.

    x^ = s (clamp(round(x / s) + z, low, high) - z)

Esser et al., "Learned step size quantization" (2020), eq. 1-5; Bhalgat et al., "LSQ+" (2020), eq. 4-7, but with the offset as
an integer zero point z, rounded straight through, because integer kernels take nothing else. With v = x / s and g the gradient
at x^:

| | low - z <= v <= high - z | v below | v above |
|---|---|---|---|
| dx | g | 0 | 0 |
| ds | g (round(v) - v) | g (low - z) | g (high - z) |
| dz | 0 | -s g | -s g |

ds and dz, summed over the n values that share a step, are multiplied by 1 / sqrt(n high), which brings them to the size of the
gradients of weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: how finely the range with the least squared error is searched
RATIOS = 80


def learned_rounding(x: Tensor, step: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Round x to a grid, with gradients for x, the step and the zero point.

    Args:
        x: (...) float32.
        step: positive; () for one grid, or (channels, 1, ...) for one a channel, of x's number of dimensions.
        zero_point: () float32, rounded here; 0 for a symmetric grid.
        low, high: the integers at the ends of the grid; low - z <= 0 <= high - z.

    Returns:
        (...) float32, multiples of the step.
    """
    if torch.is_grad_enabled():
        return _LearnedRounding.apply(x, step, zero_point, low, high)
    return (x / step).clamp_(*_ends(zero_point, low, high)).round_().mul_(step)


def _ends(zero_point: Tensor, low: int, high: int) -> tuple[Tensor, Tensor] | tuple[float, float]:
    """Smallest and largest multiple of the step. On a CPU as numbers, with which clamping is six times faster; a GPU would
    have to be waited for."""
    zero = zero_point.detach().round()
    if zero.device.type == "cpu":
        number = zero.item()
        return low - number, high - number
    return low - zero, high - zero


class _LearnedRounding(torch.autograd.Function):
    """Activations are large and pass here at every layer: as few passes over them as possible, and masks in float32, whose
    products are several times faster than those of booleans on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
        scaled = x / step
        rounded = scaled.clamp(*_ends(zero_point, low, high))
        inside = scaled.eq_(rounded)
        rounded.round_().mul_(step)
        ctx.save_for_backward(x, step, inside, rounded)
        ctx.high = high
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, step, inside, rounded = ctx.saved_tensors
        passed = gradient * inside
        scale = (x.numel() / step.numel() * ctx.high) ** -0.5
        for_step = for_zero = None
        if ctx.needs_input_grad[1]:
            slope = torch.addcmul(rounded, inside, x, value=-1)  # s times d x^ / d s: x^ - x inside, x^ outside
            for_step = slope.mul_(gradient).sum_to_size(step.shape) / step * scale
        if ctx.needs_input_grad[2]:
            for_zero = (passed.sum() - gradient.sum()) * step * scale
        return passed, for_step, for_zero, None, None


@torch.no_grad()
def least_squares_step(weight: Tensor, low: int, high: int) -> Tensor:
    """The step of each output channel, out of 80 between the largest weight's and 1/80 of that, with the least sum of squared
    rounding errors.

    weight (out, ...) -> (out,), positive; a channel of zeros gets 1.
    """
    rows = weight.detach().flatten(1)
    reach = torch.maximum(rows.amax(1) / high, rows.amin(1) / low)
    reach = torch.where(reach > 0, reach, torch.ones_like(reach))
    best, least = reach.clone(), torch.full_like(reach, torch.inf)
    for number in range(RATIOS, 0, -1):
        step = reach * number / RATIOS
        error = ((rows / step[:, None]).round().clamp(low, high) * step[:, None] - rows).square().sum(1)
        better = error < least
        best, least = torch.where(better, step, best), torch.where(better, error, least)
    return best
