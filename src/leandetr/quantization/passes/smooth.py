"""SmoothQuant: difficult channels of a layer's input are made smaller, and its weights larger by as much (Xiao et al.,
"SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML 2023, eq. 3 and 4):

    Y = (X diag(s)^-1) (diag(s) W),    s_j = max |X_j|^alpha / max |W_j|^(1 - alpha)

for every input channel j, which leaves the function as it is. Where the input is the output of a LayerNorm that nothing reads
but such layers, 1/s goes into the norm, and the layers share one s. Where anything stands in between, as where a position
embedding is added, 1/s stays with the layer: a multiplication of its input where that is then rounded, and of its dequantized
weights where only these are, which engines compute once.

With `alpha="auto"` a layer takes the alpha, or no smoothing at all, that gives the least expected squared error of its output:
what rounding does to the weights, through the second moment H of the inputs, and the noise of rounding inputs to n-th steps,

    trace(D H D^T) + rows step^2 / 12 sum (s W)^2,    D = round(s W) / s - W
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from leandetr.quantization.config import AUTO, SmoothQuant
from leandetr.quantization.layers.rounding import InputMoment
from leandetr.quantization.passes.calibrate import observe
from leandetr.quantization.passes.flow import watch

ALPHAS = tuple(step / 20 for step in range(21))
LIMIT = 1e4  # of s and 1/s


class Channels:
    """The range of every input channel of a Linear, (in,), and with `moment` its second moment. Memory does not depend on how
    much it has seen."""

    def __init__(self, layer: nn.Linear, moment: bool) -> None:
        self.low = torch.zeros(layer.in_features, device=layer.weight.device)
        self.high = torch.zeros_like(self.low)
        self.moment = InputMoment(layer) if moment else None

    def update(self, x: Tensor) -> None:
        """x: (..., in)."""
        rows = x.flatten(0, -2)
        self.low = torch.minimum(self.low, rows.amin(0))
        self.high = torch.maximum(self.high, rows.amax(0))
        if self.moment is not None:
            self.moment.update(x)

    @property
    def largest(self) -> Tensor:
        return torch.maximum(-self.low, self.high)


@dataclass
class Shared:
    """Layers that get one s, and the norm that takes 1/s; None where the layer does."""

    norm: nn.LayerNorm | None
    layers: list[nn.Linear] = field(default_factory=list)


@torch.no_grad()
def smooth(
    model: nn.Module,
    settings: dict[nn.Linear, SmoothQuant],
    run: Callable[[], object],
    images: Iterable[tuple[Tensor, Tensor]],
) -> dict[nn.Linear, Tensor]:
    """Smooth the inputs of the layers in `settings`; the model is changed in place and computes what it did.

    Args:
        model: in evaluation mode.
        settings: layer -> its setting; layers that never run stay as they are.
        run: calls the model once, on one image.
        images: pixel values and masks.

    Returns:
        layer -> 1/s (in,), for the layers that multiply their inputs by it; here a hook does so.
    """
    groups = _groups(model, settings, run)
    channels = {layer: Channels(layer, settings[layer].alpha == AUTO) for group in groups for layer in group.layers}
    observe(model, images, channels.items())
    factors = {}
    for group in groups:
        scale = _scale(group.layers, settings[group.layers[0]], channels)
        for layer in group.layers:
            layer.weight.mul_(scale)
        if group.norm is not None:
            group.norm.weight.div_(scale)
            group.norm.bias.div_(scale)
        elif not bool((scale == 1).all()):
            factors[group.layers[0]] = factor = 1 / scale
            group.layers[0].register_forward_pre_hook(lambda _module, inputs, factor=factor: (inputs[0] * factor,))
    return factors


def _scale(layers: list[nn.Linear], setting: SmoothQuant, channels: dict[nn.Linear, Channels]) -> Tensor:
    """s (in,) of layers with the same input."""
    seen = channels[layers[0]]
    weights = torch.stack([layer.weight.abs().amax(0) for layer in layers]).amax(0)

    def migrated(alpha: float) -> Tensor:
        scale = (seen.largest**alpha / weights ** (1 - alpha)).clamp(1 / LIMIT, LIMIT)
        return torch.where((seen.largest > 0) & (weights > 0), scale, torch.ones_like(scale))

    if not isinstance(setting.alpha, str):
        return migrated(setting.alpha)
    candidates = [torch.ones_like(weights), *(migrated(alpha) for alpha in ALPHAS)]
    rounded = setting.activations != "float"
    return min(candidates, key=lambda scale: sum(_expected_error(layer, scale, seen, rounded) for layer in layers))


def _expected_error(layer: nn.Linear, scale: Tensor, seen: Channels, rounded: bool) -> float:
    weight = layer.weight * scale
    step = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(weight.dtype).tiny)
    difference = (torch.round(weight / step) * step - weight) / scale
    assert seen.moment is not None  # kept where alpha is chosen
    error = ((difference @ seen.moment.matrix) * difference).sum()
    if rounded:
        step = ((seen.high / scale).max() - (seen.low / scale).min()) / 255
        error = error + seen.moment.rows * step**2 / 12 * weight.square().sum()
    return error.item()


def _groups(model: nn.Module, settings: dict[nn.Linear, SmoothQuant], run: Callable[[], object]) -> list[Shared]:
    """The layers that run, together where a norm can take their 1/s."""
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm) and module.bias is not None]
    readers = _Readers(norms)
    with readers:
        flow = watch([*settings, *norms], run)
    readers.close()
    groups, taken = [], set()
    for norm in norms:
        layers = [layer for layer in settings if layer in flow.consumers.get(norm, ())]
        alone = readers.count.get(norm) == len(layers) == len(flow.consumers.get(norm, ()))
        alike = len({settings[layer].alpha for layer in layers}) == 1
        if layers and alone and alike and all(flow.source(layer) is norm for layer in layers):
            groups.append(Shared(norm, layers))
            taken |= set(layers)
    return groups + [Shared(None, [layer]) for layer in settings if layer in flow.sources and layer not in taken]


class _Readers(TorchFunctionMode):
    """How many functions took a norm's output as it was, while the block runs."""

    def __init__(self, norms: list[nn.LayerNorm]) -> None:
        super().__init__()
        self.count: dict[nn.Module, int] = {}
        self.outputs: list[tuple[Tensor, nn.Module]] = []
        self.handles = [norm.register_forward_hook(self._keep) for norm in norms]

    def _keep(self, norm: nn.Module, _inputs: tuple, output: Tensor) -> None:
        self.outputs.append((output, norm))  # kept, because an identity is only good while its tensor lives

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") not in ("__get__", "size", "dim"):  # these ask for a shape alone
            taken = {id(value) for value in _tensors((args, kwargs))}
            for output, norm in self.outputs:
                if id(output) in taken:
                    self.count[norm] = self.count.get(norm, 0) + 1
        return function(*args, **kwargs)

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def _tensors(value: object) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
