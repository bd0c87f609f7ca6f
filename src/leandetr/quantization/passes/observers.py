"""Finding the range of a tensor from batches of it, in memory that does not grow with their number.

An observer sees tensors one after the other and answers a range (low, high) that holds 0, of which `grid_of` makes a grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from leandetr.quantization.grids import GridSetting, grid_of, unsigned

Range = tuple[float, float]


class Observer(ABC):
    """What takes in the tensors of one place and finds the range of its grid."""

    @abstractmethod
    def update(self, x: Tensor) -> None:
        """Take in a tensor of any shape with at least one element."""

    @abstractmethod
    def range(self) -> Range:
        """The range of everything seen; low <= 0 <= high. At least one tensor must have been seen."""


class MinMax(Observer):
    """The smallest and the largest value."""

    def __init__(self) -> None:
        self.low, self.high = 0.0, 0.0

    def update(self, x: Tensor) -> None:
        low, high = (value.item() for value in torch.aminmax(x))
        self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self) -> Range:
        return self.low, self.high


class MovingAverage(Observer):
    """The smallest and the largest value of a batch, averaged over batches: average <- 0.9 average + 0.1 batch."""

    momentum = 0.9

    def __init__(self) -> None:
        self.ends: Tensor | None = None

    def update(self, x: Tensor) -> None:
        ends = torch.stack(torch.aminmax(x)).double().cpu()
        self.ends = ends if self.ends is None else self.momentum * self.ends + (1 - self.momentum) * ends

    def range(self) -> Range:
        assert self.ends is not None, "nothing was seen"
        low, high = self.ends.tolist()
        return min(low, 0.0), max(high, 0.0)


class Histogram(Observer):
    """Counts of |values| on each side of 0, in bins of one width that doubles when a value lies beyond the last bin.

    Doubling merges neighbouring bins, so counts stay exact and memory constant; a width is at most twice what was needed.
    """

    bins = 2048  # a side

    def __init__(self) -> None:
        self.width = 0.0
        self.counts = torch.zeros(2, self.bins, dtype=torch.float64)  # negative side, positive side

    def update(self, x: Tensor) -> None:
        x = x.detach().float().flatten()
        reach = x.abs().max().item()
        if self.width == 0.0:  # nothing but zeros so far, all of them in the first bin
            self.width = reach / self.bins
        if reach == 0.0:
            self.counts[1, 0] += x.numel()
            return
        while self.width * self.bins < reach:
            pairs = self.counts.unflatten(1, (-1, 2)).sum(2)
            self.counts = torch.cat([pairs, torch.zeros_like(pairs)], dim=1)
            self.width *= 2
        for side, values in enumerate((-x[x < 0], x[x >= 0])):
            index = (values / self.width).long().clamp(max=self.bins - 1)
            self.counts[side] += torch.bincount(index, minlength=self.bins).double().cpu()

    def ends(self) -> Range:
        """The outer edges of the outermost bins that hold anything."""
        filled = [torch.nonzero(side).flatten() for side in self.counts]
        low, high = (((bins[-1].item() + 1) * self.width) if len(bins) else 0.0 for bins in filled)
        return -low, high


class Percentile(Histogram):
    """The range outside which (100 - percentile) % of the values lie, half of them on each side."""

    def __init__(self, percentile: float) -> None:
        super().__init__()
        self.outside = (1 - percentile / 100) / 2

    def range(self) -> Range:
        values = torch.cat([self.counts[0].flip(0), self.counts[1]])
        below = values.cumsum(0) / values.sum()
        above = values.flip(0).cumsum(0) / values.sum()
        low = int((below <= self.outside).sum()) - self.bins  # bins wholly outside, counted from 0.0
        high = self.bins - int((above <= self.outside).sum())
        least, most = self.ends()
        return max(min(low * self.width, 0.0), least), min(max(high * self.width, 0.0), most)


class Shrunk(Histogram):
    """The range, both ends shrunk by one ratio out of 80, with the least loss."""

    ratios = 80

    def __init__(self, setting: GridSetting) -> None:
        super().__init__()
        self.bits, self.symmetric = setting.bits, setting.symmetric

    @abstractmethod
    def loss(self, candidate: Range) -> float:
        """What the grid over a range loses of what was seen."""

    def range(self) -> Range:
        low, high = self.ends()
        shrunk = [(low * step / self.ratios, high * step / self.ratios) for step in range(self.ratios, 0, -1)]
        return min(shrunk, key=self.loss)


class MeanSquares(Shrunk):
    """The sum of (x - fake_quantize(x))^2."""

    def loss(self, candidate: Range) -> float:
        centres = (torch.arange(self.bins, dtype=torch.float64) + 0.5) * self.width
        values = torch.stack([-centres, centres])
        scale, zero_point = (t.double() for t in grid_of(*candidate, self.bits, self.symmetric))
        rounded = (torch.clamp(torch.round(values / scale) + zero_point, *unsigned(self.bits)) - zero_point) * scale
        return (self.counts * (values - rounded) ** 2).sum().item()


class Entropy(Shrunk):
    """The divergence KL(P || Q) between the histogram and what the grid leaves of it.

    P is the histogram inside the range, what lies outside added to its end bins. Q is the histogram inside the range alone,
    each level's count shared evenly among its bins that are not empty. Both are normalised; a ten-thousandth of Q is spread
    over all bins, so that the divergence is finite.
    """

    spread = 1e-4

    def loss(self, candidate: Range) -> float:
        counts = torch.cat([self.counts[0].flip(0), self.counts[1]])
        edge = torch.arange(-self.bins, self.bins, dtype=torch.float64) * self.width  # the lower one of each bin
        inside = (edge >= candidate[0] - self.width / 2) & (edge + self.width <= candidate[1] + self.width / 2)
        kept = counts[inside]
        if not kept.any():
            return float("inf")
        first, last = (int(index) for index in torch.nonzero(inside).flatten()[[0, -1]])
        clipped = kept.clone()
        clipped[0] += counts[:first].sum()
        clipped[-1] += counts[last + 1 :].sum()
        scale, zero_point = (t.double() for t in grid_of(*candidate, self.bits, self.symmetric))
        level = torch.clamp(torch.round((edge + self.width / 2)[inside] / scale) + zero_point, *unsigned(self.bits)).long()
        filled = (kept > 0).double()
        totals, shares = (torch.zeros(2**self.bits, dtype=torch.float64).index_add(0, level, x) for x in (kept, filled))
        left = filled * (totals / shares.clamp(min=1))[level]
        p, q = clipped / clipped.sum(), left / left.sum()
        q = (1 - self.spread) * q + self.spread / len(q)
        return float((p * (p / q).clamp(min=torch.finfo(p.dtype).tiny).log()).sum())


def observer_of(setting: GridSetting) -> Observer:
    """A fresh observer of the setting's kind."""
    return {
        "min-max": MinMax,
        "moving-average": MovingAverage,
        "percentile": lambda: Percentile(setting.percentile),
        "mse": lambda: MeanSquares(setting),
        "entropy": lambda: Entropy(setting),
    }[setting.observer]()
