"""How many products a model computes for one image."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(model: nn.Module, image_size: tuple[int, int]) -> int:
    """Of one image of (height, width): in matrix products, convolutions and attention; sampling, norms and activations are not
    counted. With real tensors: some families look at values to decide what to compute.

    No parameter may require a gradient: PyTorch's counter would ask views of parameters for one that is never computed.
    """
    image = torch.zeros(1, 3, *image_size, device=next(model.parameters()).device)
    # Which fused kernels the counter knows differs between PyTorch's versions, and an unknown one counts as nothing; the
    # unfused kernel is two matrix products in all of them.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(pixel_values=image)
    return counter.get_total_flops() // 2
