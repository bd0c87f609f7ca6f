"""Gradient checkpointing (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016): a block keeps what went into it
and is computed a second time in the backward pass, in place of keeping all that happens inside.

The blocks are those of the backbone, of what lies between it and the decoder, and the decoder's layers, found by how they are
repeated: so every family and every backbone has it, those of transformers that cannot do it by themselves (RT-DETR, RT-DETRv2,
D-FINE, DEIMv2) too. Noise that is drawn inside is drawn again. Norms count a batch once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from leandetr.detectors.detector import Detector


def recompute_blocks(detector: Detector) -> None:
    """Let the blocks of a detector be computed again in every backward pass of a training."""
    family, model = detector.family, detector.model
    parts = [family.backbone(model), *family.encoder(model)]
    found = [block for part in parts if isinstance(part, nn.Module) for block in blocks_of(part)]
    found += list(model.model.decoder.layers)
    for block in found:
        block.forward = functools.partial(_recomputed, block, block.forward)


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules with weights that stand in a list or a sequence."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from (block for block in child if next(block.parameters(), None) is not None)
        else:
            yield from blocks_of(child)


def _recomputed(block: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _counted(norms)), **kwargs)


@contextmanager
def _counted(norms: list[_BatchNorm]) -> Iterator[None]:
    """The norms normalise by their batch and leave their statistics, which have taken it in already, as they are."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, number) in zip(norms, before, strict=True):
        norm.momentum, norm.num_batches_tracked = 0.0, number.clone() if number is not None else None
    try:
        yield
    finally:
        for norm, (momentum, number) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, number
