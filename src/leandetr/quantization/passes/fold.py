"""BatchNorm folded into the convolution before it, and parallel convolutions into one, which leaves the function as it was:

    norm(conv(x)) = a (W * x + c) + b    ->    W' = a W,  c' = a c + b

with a = weight / sqrt(running_var + eps), b = bias - running_mean a, one value a channel. In evaluation a norm is this
map and nothing else; the frozen norms of transformers, torchvision and timm are so in training too.

RepVGG's blocks (Ding et al., CVPR 2021, section 3.3), which the encoders of RT-DETR and its descendants are made of, add a 3x3
and a 1x1 convolution of one tensor. W3 * x + c3 + W1 * x + c1 is one 3x3 convolution, W1 being added to the middle of W3: an
integer product, a grid and a sum less in every block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from leandetr.quantization.layers.folded import apply_folds, apply_merges
from leandetr.quantization.layers.modules import CONVOLUTIONS, names_of
from leandetr.quantization.passes.flow import watch


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
    convolutions = {module for module in names if isinstance(module, nn.Conv2d) and type(module) in CONVOLUTIONS}
    norms = {module for module in names if is_norm(module)}
    flow = watch([*convolutions, *norms], run)
    folds = {}
    for norm in (module for module in names if module in norms):
        conv = flow.source(norm)
        if conv in convolutions and flow.consumers[conv] == {norm}:
            _fold(conv, norm)
            folds[names[conv][0]] = names[norm][0]
    apply_folds(model, folds)
    return folds


def merge_parallel(model: nn.Module) -> dict[str, str]:
    """Make one convolution of the two of every RepVGG block whose norms have been folded. The model is changed in place.

    Returns:
        name of the branch that is gone -> name of the convolution that has taken it in, which `apply_merges` takes.
    """
    merges = {}
    for name, block in model.named_modules():
        if not type(block).__name__.endswith("RepVggBlock"):
            continue
        wide, narrow = (next((m for m in branch.modules() if isinstance(m, nn.Conv2d)), None) for branch in _branches(block))
        if wide is None or narrow is None or wide.bias is None or narrow.bias is None or not _is_sum(block, wide, narrow):
            continue
        with torch.no_grad():
            wide.weight[:, :, 1:2, 1:2] += narrow.weight
            wide.bias += narrow.bias
        merges[f"{name}.conv2"] = next(f"{name}.{inside}" for inside, module in block.named_modules() if module is wide)
    apply_merges(model, merges)
    return merges


def _branches(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """conv1 and conv2, as they are called in all descendants of RT-DETR; nothing in a block of other making."""
    return getattr(block, "conv1", nn.Identity()), getattr(block, "conv2", nn.Identity())


def _is_sum(block: nn.Module, wide: nn.Conv2d, narrow: nn.Conv2d) -> bool:
    """Whether a block's branches are a 3x3 and a 1x1 convolution that keep the size, with their norms folded."""
    parts = [module for branch in _branches(block) for module in branch.modules()]
    folded = not any(is_norm(module) for module in parts)
    plain = all(isinstance(module, (nn.Conv2d, nn.Identity)) or list(module.children()) for module in parts)  # no activation
    alike = all(getattr(wide, key) == getattr(narrow, key) for key in ("in_channels", "out_channels", "stride", "groups"))
    shapes = (wide.kernel_size, wide.padding, wide.dilation) == ((3, 3), (1, 1), (1, 1)) and narrow.kernel_size == (1, 1)
    return folded and plain and alike and shapes and narrow.padding == (0, 0)


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    scale, shift = affine(norm)
    bias = torch.zeros_like(shift) if conv.bias is None else conv.bias
    conv.bias = nn.Parameter(scale * bias + shift)
    conv.weight.mul_(scale[:, None, None, None])


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """a and b (channels,) of a norm's map a x + b in evaluation."""
    eps: float = getattr(norm, "eps", 1e-5)  # transformers' frozen norms have it written into their forward
    tensors: dict[str, Tensor] = {**dict(norm.named_parameters(recurse=False)), **dict(norm.named_buffers(recurse=False))}
    scale = (tensors["running_var"].double() + eps).rsqrt()
    if "weight" in tensors:
        scale = scale * tensors["weight"].double()
    shift = -tensors["running_mean"].double() * scale
    if "bias" in tensors:
        shift = shift + tensors["bias"].double()
    return scale.float(), shift.float()
