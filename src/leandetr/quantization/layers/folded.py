"""The structure that folded norms and merged convolutions leave in a model (`passes/fold.py`), which loading builds again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leandetr.quantization.layers.modules import replace_modules


def apply_folds(model: nn.Module, folds: dict[str, str]) -> None:
    """Give the convolutions a bias and put the norms' activations, or nothing, in the norms' place."""
    replacements = {}
    for conv_name, norm_name in folds.items():
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        if conv.bias is None:
            conv.bias = nn.Parameter(torch.zeros(conv.out_channels, device=conv.weight.device))
        replacements[norm] = getattr(norm, "act", None) or nn.Identity()  # timm's norms hold their activation
    replace_modules(model, replacements)


def apply_merges(model: nn.Module, merges: dict[str, str]) -> None:
    """Let the branches that have been taken in add nothing."""
    replace_modules(model, {model.get_submodule(name): Nothing() for name in merges})


class Nothing(nn.Module):
    """Any tensor -> what leaves the tensor that it is added to the same object, so that `passes/flow.py` sees it go on."""

    def forward(self, x: Tensor) -> Added:
        return Added()


class Added:
    """Nothing, on the right of a sum."""

    def __radd__(self, x: Tensor) -> Tensor:
        return x
