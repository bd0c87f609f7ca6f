"""Exponential moving average of a detector's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """shadow <- d * shadow + (1 - d) * weights after every step, with d = min(decay, (1 + n) / (10 + n)) at step n, so that
    the average follows the weights closely while they still move fast.

    Floating-point buffers (BatchNorm's statistics) are averaged too; integers are copied.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self.decay = decay
        self.steps = 0
        self.shadow = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer once, tied ones under one name."""
        return dict(self.module.named_parameters()) | dict(self.module.named_buffers())

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        tensors = self._tensors()
        self.shadow = {name: self.shadow[name].to(tensor.device) for name, tensor in tensors.items()}
        averaged = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
        copied = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
        # all tensors in a few kernels: they are hundreds, and most of them small
        torch._foreach_lerp_([self.shadow[name] for name in averaged], [tensors[name] for name in averaged], weight)
        if copied:
            torch._foreach_copy_([self.shadow[name] for name in copied], [tensors[name] for name in copied])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights in place of the module's own while the block runs."""
        own = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}
        self._fill(self.shadow)
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, tensor in self._tensors().items():
            tensor.copy_(values[name])

    def state(self) -> dict[str, Tensor]:
        return self.shadow | {"steps": torch.tensor(self.steps)}

    def load(self, state: dict[str, Tensor]) -> None:
        self.steps = int(state["steps"])
        self.shadow = {name: state[name] for name in self.shadow}
