"""BatchNorm folded into the convolution before it, which leaves the function as it was:

    norm(conv(x)) = a (W * x + c) + b    ->    W' = a W,  c' = a c + b

with a = weight / sqrt(running_var + eps), b = bias - running_mean a, one value a channel. In evaluation a norm is this
map and nothing else; the frozen norms of transformers, torchvision and timm are so in training too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from leandetr.quantization.flow import watch
from leandetr.quantization.modules import CONVOLUTIONS, names_of, replace_modules


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm of any library. Frozen ones share no class, only the end of their name."""
    return isinstance(module, nn.BatchNorm2d) or type(module).__name__.endswith(("FrozenBatchNorm2d", "FrozenBatchNormAct2d"))


def fold_batch_norms(model: nn.Module, run: Callable[[], object]) -> dict[str, str]:
    """Fold every BatchNorm whose input is the output of one convolution and of nothing else. The model is changed in place.

    Args:
        model: in evaluation mode.
        run: calls the model once.

    Returns:
        name of the convolution -> name of its norm, which `apply_folds` takes to build the same structure again.
    """
    names = names_of(model)
    convolutions = {module for module in names if type(module) in CONVOLUTIONS}
    norms = {module for module in names if is_norm(module)}
    flow = watch(convolutions | norms, run)
    folds = {}
    for norm in (module for module in names if module in norms):
        conv = flow.source(norm)
        if conv in convolutions and flow.consumers[conv] == {norm}:
            _fold(conv, norm)
            folds[names[conv][0]] = names[norm][0]
    apply_folds(model, folds)
    return folds


def apply_folds(model: nn.Module, folds: dict[str, str]) -> None:
    """Give the convolutions a bias and put the norms' activations, or nothing, in the norms' place."""
    replacements = {}
    for conv_name, norm_name in folds.items():
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        if conv.bias is None:
            conv.bias = nn.Parameter(torch.zeros(conv.out_channels, device=conv.weight.device))
        replacements[norm] = getattr(norm, "act", None) or nn.Identity()  # timm's norms hold their activation
    replace_modules(model, replacements)


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    scale, shift = affine(norm)
    bias = torch.zeros_like(shift) if conv.bias is None else conv.bias
    conv.bias = nn.Parameter(scale * bias + shift)
    conv.weight.mul_(scale[:, None, None, None])


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """a and b (channels,) of a norm's map a x + b in evaluation."""
    eps = getattr(norm, "eps", 1e-5)  # transformers' frozen norms have it written into their forward
    scale = (norm.running_var.double() + eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return scale.float(), shift.float()
