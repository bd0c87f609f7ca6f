"""Where numbers that are not finite began: one more pass over the images that gave them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leandetr.errors import UserError

LOWER = "lower training.lr or training.clip"
LOWER_OR_PRECISE = f"set training.precision=float32, or {LOWER}"


class Diverged(UserError):
    """A training whose numbers are not finite any more."""


def diverged(
    module: nn.Module, batches: Sequence[Mapping[str, Any]], step: int, what: str, again: bool, half: bool
) -> Diverged:
    """The error, with where it began.

    Args:
        module: what is trained; it is run again, forwards and backwards, and keeps no gradients.
        batches: what the step was computed from, as the module's arguments.
        step: counted from 1.
        what: which number; "loss" or "gradient".
        again: whether it may be run again; one process of several would wait for the others.
        half: whether it computes in half precision.
    """

    def said(origin: str) -> Diverged:
        mend = LOWER_OR_PRECISE if half else LOWER
        return Diverged(f"the {what} is not a number at step {step}{': ' * bool(origin)}{origin}; {mend}")

    weights = dict(module.named_parameters())
    broken = [name for name, weight in weights.items() if not _finite(weight)]
    if broken:
        return said(f"{len(broken)} of {len(weights)} weights are not finite since an earlier step, the first is {broken[0]}")
    origins = (first_not_finite(module, batch) for batch in batches) if again else iter(())
    return said(next((origin for origin in origins if origin), ""))


def first_not_finite(module: nn.Module, batch: Mapping[str, Any]) -> str:
    """Run a module on a batch forwards, and backwards from its loss: the first layer whose output, or else, from the loss on,
    whose gradient is not finite, in words. "" where all is finite, as it can be where dropout drew otherwise."""
    watch, output = _Watch(), None
    # not on identities: an attention whose empty slots are looked at computes with another kernel
    layers = [(name, layer) for name, layer in module.named_modules() if type(layer) is not nn.Identity]
    handles = [handle for name, layer in layers for handle in watch.on(name, layer)]
    try:
        module.zero_grad(set_to_none=True)
        with torch.enable_grad():
            output = module(**batch)
        if not watch.forward and _finite(output.loss):
            output.loss.backward()
    except (ValueError, RuntimeError):  # the losses refuse numbers that are not finite
        pass
    finally:
        for handle in handles:
            handle.remove()
    gradients = [name for name, weight in module.named_parameters() if weight.grad is not None and not _finite(weight.grad)]
    module.zero_grad(set_to_none=True)
    if watch.forward:
        return f"{watch.forward[0]} is the first that is not finite"
    if output is None or not _finite(output.loss):
        return f"every layer's output is finite, and the loss is not{_parts_not_finite(output)}"
    if watch.backward:
        return f"from the loss backwards, the gradient of the output of {watch.backward[0]} is the first that is not finite"
    return f"the gradient of {gradients[0]} is not finite" if gradients else ""


class _Watch:
    """What was not finite, in the order in which layers computed it: forwards, and backwards."""

    def __init__(self) -> None:
        self.forward: list[str] = []
        self.backward: list[str] = []

    def on(self, name: str, layer: nn.Module) -> Iterator[torch.utils.hooks.RemovableHandle]:
        said = f"{name or 'the whole'} ({type(layer).__name__})"

        def entered(_layer: nn.Module, inputs: tuple) -> None:
            if not all(map(_finite, _tensors(inputs))):
                self.forward.append(f"what enters {said}")

        def left(_layer: nn.Module, _inputs: tuple, output: Any) -> None:
            for tensor in _tensors(output):
                if not _finite(tensor):
                    self.forward.append(f"the output of {said}")
                elif tensor.requires_grad:
                    # a hook on the tensor: those of modules fail where a ReLU works in place
                    tensor.register_hook(lambda gradient: None if _finite(gradient) else self.backward.append(said))

        if not list(layer.children()):  # what functions between the layers made is seen where the next layer reads it
            yield layer.register_forward_pre_hook(entered)
        yield layer.register_forward_hook(left)


def _parts_not_finite(output: Any) -> str:
    logs = getattr(output, "logs", {}).items()
    parts = [name for name, value in logs if not name.startswith(("share/", "gradient/")) and not _finite(value)]
    return f": {', '.join(parts)}" if parts else ""


def _tensors(values: Any) -> list[Tensor]:
    """Those of a layer. A whole model's answer is a mapping, and may hold infinities: of proposals that are none."""
    values = values if isinstance(values, (tuple, list)) else (values,)
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
