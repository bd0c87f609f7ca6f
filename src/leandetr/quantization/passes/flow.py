"""Which module's output goes straight into which module: found by running the model once and comparing tensors by identity.

Names do not tell it (families and backbones name their blocks differently), symbolic tracing fails on most detection
transformers, and a run cannot be wrong about what it saw. Sums, concatenations and other plain functions between two modules
show as "no module": the tensor is then no module's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Flow:
    """What one run showed of the watched modules.

    sources: module -> for each of its calls, the watched module whose output its input was, or None.
    consumers: module -> the watched modules that took its output as it was.
    """

    sources: dict[nn.Module, list[nn.Module | None]] = field(default_factory=dict)
    consumers: dict[nn.Module, set[nn.Module]] = field(default_factory=dict)

    def source(self, module: nn.Module) -> nn.Module | None:
        """The watched module that feeds this one, where it runs once and so does its source."""
        calls = self.sources.get(module, [])
        if len(calls) != 1 or calls[0] is None or len(self.sources[calls[0]]) != 1:
            return None
        return calls[0]


@torch.no_grad()
def watch(modules: Iterable[nn.Module], run: Callable[[], object]) -> Flow:
    """Call `run` and record how tensors go between the given modules.

    The tensors seen are kept until the run is over, because an identity is only good while its tensor lives: memory is that
    of one run's activations. A tensor that was written into in between (`x += shortcut`) is another one, which its version
    number tells.
    """
    flow, alive = Flow(), []
    producers: dict[tuple[int, int], nn.Module] = {}

    def before(module: nn.Module, args: tuple) -> None:
        source = producers.get((id(args[0]), args[0]._version)) if args and isinstance(args[0], Tensor) else None
        flow.sources.setdefault(module, []).append(source)
        if source is not None:
            flow.consumers.setdefault(source, set()).add(module)

    def after(module: nn.Module, _args: tuple, output: object) -> None:
        if isinstance(output, Tensor):
            alive.append(output)
            producers[id(output), output._version] = module

    handles = []
    for module in modules:
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return flow
