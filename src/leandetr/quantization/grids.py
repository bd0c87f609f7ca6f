"""The grids of b-bit integers that tensors are rounded to.

| integers | ends | of |
|---|---|---|
| unsigned | 0, 2^b - 1 | activations, with a zero point; at 2^(b-1) it makes them signed ones around 0 |
| signed | -2^(b-1), 2^(b-1) - 1 | weights that are only stored so, and trained ones |
| symmetric | -(2^(b-1) - 1), 2^(b-1) - 1 | weights that are multiplied so: integer kernels want -127..127 |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BITS = range(2, 9)

#: how the range of a calibrated grid is found; what each does stands in `config.Static`
OBSERVERS = ("min-max", "moving-average", "percentile", "mse", "entropy")

NONE_NEGATIVE = -1e-5  # a minimum above this is rounding noise of a tensor that has no negative values


@dataclass(frozen=True)
class GridSetting:
    """How the grid of an activation is found: its bits, the observer of its range, in percent the share of values inside that
    "percentile" wants, how many images are read, and whether it lies around 0."""

    bits: int = 8
    observer: str = "min-max"
    percentile: float = 99.99
    calibration_images: int = 128
    symmetric: bool = False


def unsigned(bits: int) -> tuple[int, int]:
    """Least and greatest integer of so many bits without a sign."""
    return 0, 2**bits - 1


def signed(bits: int) -> tuple[int, int]:
    """Least and greatest integer of so many bits with a sign."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def symmetric(bits: int) -> tuple[int, int]:
    """The same without the least, so that each has its negative."""
    top = 2 ** (bits - 1) - 1
    return -top, top


def has_negatives(low: float) -> bool:
    """Whether a tensor whose least value this is has negative ones, beyond rounding noise."""
    return low < NONE_NEGATIVE


def grid_of(low: float, high: float, bits: int, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """Scale () float32 and zero point () uint8 of the unsigned grid over [low, high], widened to hold 0:

        scale = (high - low) / (2^b - 1),    zero_point = round(-low / scale)

    A tensor without negative values gets zero point 0. An empty range gets scale 1. The symmetric one is

        scale = max(-low, high) / (2^(b-1) - 1),    zero_point = 2^(b-1)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if not has_negatives(low):
        low = 0.0
    _, levels = unsigned(bits)
    width = max(-low, high) / (levels // 2) if symmetric else (high - low) / levels
    scale = torch.tensor(width, dtype=torch.float32)
    if not scale > 0:
        scale = torch.ones(())
    if symmetric:
        return scale, torch.tensor(levels // 2 + 1, dtype=torch.uint8)
    zero_point = torch.round(torch.tensor(-low) / scale).clamp(0, levels)
    return scale, zero_point.to(torch.uint8)
