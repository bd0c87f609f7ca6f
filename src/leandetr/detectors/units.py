"""Units of a model that can leave without the others computing anything else: hidden units, attention heads, inner channels.

A unit is a slice of the weights of several layers at once: the rows that make it, what is computed of it alone, and the columns
that read it. Where its value passes there are gates: multiplied by zero there, it is as if it had left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Structure = Literal["ffn", "heads", "channels"]
STRUCTURES: tuple[Structure, ...] = get_args(Structure)


@dataclass(frozen=True)
class Part:
    """One side of a layer's weights, along which units lie in their order, `size` elements each.

    layer: linear, convolution or norm of fixed statistics. reads: the units are its inputs, not its outputs. first:
    elements before them; `behind`: layers whose outputs lie before them too.
    """

    layer: nn.Module
    reads: bool = False
    size: int = 1
    first: int = 0
    behind: tuple[nn.Module, ...] = ()

    @property
    def axis(self) -> int:
        return int(self.reads)

    @property
    def width(self) -> int:
        """Elements along its side."""
        return _weight(self.layer).shape[self.axis]

    @property
    def start(self) -> int:
        return self.first + sum(Part(layer).width for layer in self.behind)

    @torch.no_grad()
    def keep(self, units: Tensor, count: int) -> None:
        """Leave out all of `count` units but these, indices (K,); in place."""
        start, end, device = self.start, self.start + count * self.size, _weight(self.layer).device
        inside = units.to(device)[:, None] * self.size + torch.arange(self.size, device=device)
        before, behind = torch.arange(start, device=device), torch.arange(end, self.width, device=device)
        index = torch.cat([before, start + inside.flatten(), behind])
        for name, tensor in [*self.layer.named_parameters(recurse=False), *self.layer.named_buffers(recurse=False)]:
            if tensor.dim() > self.axis:
                left = tensor.index_select(self.axis, index)
                is_parameter = isinstance(tensor, nn.Parameter)
                setattr(self.layer, name, nn.Parameter(left, tensor.requires_grad) if is_parameter else left)
        _renumber(self.layer, self.reads, len(index))

    def squares(self, count: int) -> Tensor:
        """(count,), the sum of squares of every unit's weights."""
        each = _weight(self.layer).square().transpose(0, self.axis).flatten(1).sum(1)
        return each[self.start : self.start + count * self.size].unflatten(0, (count, self.size)).sum(1)


@dataclass(frozen=True)
class Gate:
    """Where the values of units pass: what a module is given, or what it answers; `size` values each along an axis."""

    module: nn.Module
    answers: bool = False
    axis: int = -1
    size: int = 1

    def multiply(self, by: Tensor) -> RemovableHandle:
        """Multiply every unit by a value of (count,) whenever the module runs, until the handle is removed."""

        def gated(values: Tensor) -> Tensor:
            factor = by.repeat_interleave(self.size)
            return values * (factor if self.axis == -1 else factor.view(-1, 1, 1))

        if self.answers:
            return self.module.register_forward_hook(lambda _module, _given, answer: gated(answer))
        return self.module.register_forward_pre_hook(lambda _module, given: (gated(given[0]), *given[1:]))


@dataclass(frozen=True)
class Units:
    """parts: what a unit consists of, the first a part that makes it alone. gates: where it passes. whole: a module that
    computes nothing but these units, where products besides those of the parts' layers are theirs too. counted: attributes of
    modules that are the number of units times so many. together: so many leave at a time."""

    structure: Structure
    parts: tuple[Part, ...]
    gates: tuple[Gate, ...]
    whole: nn.Module | None = None
    counted: tuple[tuple[nn.Module, str, int], ...] = ()
    together: int = 8

    @property
    def count(self) -> int:
        """How many there are."""
        return self.parts[0].width // self.parts[0].size

    def keep(self, units: Tensor) -> None:
        """Leave out all units but these, indices (K,) in the order that they are to have; in place."""
        count = self.count
        for part in self.parts:
            part.keep(units, count)
        for module, name, each in self.counted:
            setattr(module, name, len(units) * each)

    def magnitude(self) -> Tensor:
        """(count,), the sum of squares of every unit's weights in linear layers and convolutions."""
        matrices = [part for part in self.parts if isinstance(part.layer, nn.Linear | nn.Conv2d)]
        return torch.stack([part.squares(self.count) for part in matrices]).sum(0)

    def multiply(self, by: Tensor) -> list[RemovableHandle]:
        """Multiply every unit by a value of (count,) until the handles are removed."""
        return [gate.multiply(by) for gate in self.gates]


def depthwise(layer: nn.Conv2d) -> bool:
    """Whether every output is of the input of its number alone."""
    return 1 < layer.groups == layer.in_channels == layer.out_channels


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight


def _renumber(layer: nn.Module, reads: bool, width: int) -> None:
    """Have a layer's attributes say how wide it is."""
    if isinstance(layer, nn.Conv2d) and depthwise(layer):
        layer.groups = layer.in_channels = layer.out_channels = width
        return
    for name in ("in_features", "in_channels") if reads else ("out_features", "out_channels", "num_features"):
        if hasattr(layer, name):
            setattr(layer, name, width)
