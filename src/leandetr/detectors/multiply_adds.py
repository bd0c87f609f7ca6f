"""How many products a model computes for one image."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(model: nn.Module, image_size: tuple[int, int]) -> int:
    """Of one image of (height, width): in matrix products, convolutions and attention; sampling, norms and activations are not
    counted. With real tensors: some families look at values to decide what to compute.

    No parameter may require a gradient: PyTorch's counter would ask views of parameters for one that is never computed.
    """
    return multiply_adds_of(model, [model], image_size)[0]


def multiply_adds_of(model: nn.Module, modules: Iterable[nn.Module], image_size: tuple[int, int]) -> list[int]:
    """The same, of these modules in it alone, each with what is inside of it."""
    image = torch.zeros(1, 3, *image_size, device=next(model.parameters()).device)
    # Which fused kernels the counter knows differs between PyTorch's versions, and an unknown one counts as nothing; the
    # unfused kernel is two matrix products in all of them.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(pixel_values=image)
    found, top = counter.get_flop_counts(), type(model).__name__
    names = {id(module): f"{top}.{name}" if name else top for name, module in model.named_modules()}
    return [sum(found.get(names[id(module)], {}).values()) // 2 for module in modules]
