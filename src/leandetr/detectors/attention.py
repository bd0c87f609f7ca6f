"""The one place where attention is opened: slots on its operands, and a tap for what it attends to.

transformers' attention modules call a function that is registered by name. `open_attention` makes a model call the one below,

    D = P(softmax(Q(A(q)) K(k)^T / sqrt(d) + mask)) V(v)

whose Q, K, V, P (operand quantizers) and A (Q-DETR's query alignment) are submodules of each attention module, identities until
somebody sets them. They train, save and export with the model. DAB-DETR, deformable attention, AdaMixer's sampling and the
backbones do not call a registered function; `unopened_attention` names what was not reached.

Shapes use B images, H heads of d channels (D = H d), N queries, S keys, L decoder layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from leandetr.detectors.families.family import Family
from leandetr.structures import DetectionModel

#: how a configuration says that its model's attention is open, while the model lives; it is not saved
IMPLEMENTATION = "leandetr"


class AttentionSlots(nn.Module):
    """What may be put into one attention: replace any of these identities by a module of the same shape.

    align: (B, H, N, d) -> the same; the query's distribution alignment, before its quantizer. query: (B, H, N, d). key, value:
    (B, H, S, d), in Conditional DETR's cross-attention the query and the key have 2 d channels. probabilities: (B, H, N, S) in
    [0, 1].
    """

    def __init__(self) -> None:
        super().__init__()
        self.align = nn.Identity()
        self.query = nn.Identity()
        self.key = nn.Identity()
        self.value = nn.Identity()
        self.probabilities = nn.Identity()

    @property
    def operands_used(self) -> bool:
        """Whether an operand has a module other than an identity, or hooks that want to see it."""
        slots = self.query, self.key, self.value, self.probabilities
        return any(type(slot) is not nn.Identity or slot._forward_hooks or slot._forward_pre_hooks for slot in slots)


def attention_with_slots(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' signature: query (B, H, N, d), key and value (B, H, S, d), a mask that is added to the logits or, boolean,
    true where there is something to attend to -> (B, N, H, d), and the probabilities where the fused kernel was not used.

    The fused kernel computes the product while no operand has a quantizer.
    """
    slots = getattr(module, "slots", None)  # absent in a second model that was built from an opened one's configuration
    if slots is not None:
        query = slots.align(query)
    if slots is None or not slots.operands_used:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    # The scale follows the product: the two operands enter it as their quantizers leave them.
    logits = slots.query(query) @ slots.key(key).transpose(-2, -1) * scaling
    if attention_mask is not None:
        masked = attention_mask.dtype == torch.bool
        logits = logits.masked_fill(~attention_mask, torch.finfo(logits.dtype).min) if masked else logits + attention_mask
    probabilities = F.dropout(slots.probabilities(logits.softmax(-1)), p=dropout, training=module.training)
    return (probabilities @ slots.value(value)).transpose(1, 2).contiguous(), probabilities


AttentionInterface.register(IMPLEMENTATION, attention_with_slots)
# Without an entry here transformers drops padding masks in silence. This one yields boolean masks, or None without padding.
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def leave_out_cudnn_attention() -> None:
    """Have PyTorch choose among its attention kernels without cuDNN's, in this process from now on.

    With a mask in half precision cuDNN's can answer well and give gradients that are NaN (PyTorch 2.11 on an H100: all of the
    encoder of DETR, Conditional DETR and SMCA-DETR, in the first step). The others are right.

    A switch and no context around a forward: what is compiled later, or computed again in the backward pass (gradient
    checkpointing), would be outside of it. `torch.backends.cuda.enable_cudnn_sdp(True)` takes it back.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def open_attention(model: DetectionModel) -> dict[str, AttentionSlots]:
    """Give every attention of encoder and decoder its `slots`; one that has them keeps them. The model computes the same.

    Returns the slots by the name of their attention module; empty where nothing could be reached.
    """
    # A backbone's modules have another configuration, and keep their own function. Encoder and decoder make their masks by
    # what their configuration says: it may say so only where there is an attention that takes such masks.
    own = {
        name: module for name, module in model.named_modules() if type(getattr(module, "config", None)) is type(model.config)
    }
    attentions = {name: module for name, module in own.items() if hasattr(module, "is_causal") and hasattr(module, "scaling")}
    for module in attentions.values():
        if not hasattr(module, "slots"):
            module.slots = AttentionSlots()
    for module in own.values() if attentions else ():
        module.config._attn_implementation_internal = IMPLEMENTATION  # the public name would reach into the backbone
    return {name: module.slots for name, module in attentions.items()}


def unopened_attention(model: nn.Module) -> list[str]:
    """Names of the attention modules that have no slots: deformable attention, DAB-DETR's, the backbone's."""
    names: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in names)
        opened = any(isinstance(part, AttentionSlots) for part in module.modules())
        if "Attention" in type(module).__name__ and not inside and not opened:
            names.append(name)
    return names


@dataclass
class Taps:
    """decoder: (B, N, D) co-attended features of every decoder layer: what its attention to the memory gathered, heads
    concatenated, before the output projection (in D-FINE and DEIMv2, which have none, the output). encoder: (B, S, D), what the
    self-attention of every encoder layer answered, after the output projection."""

    decoder: list[Tensor] = field(default_factory=list)
    encoder: list[Tensor] = field(default_factory=list)


@contextmanager
def tapping(trunk: DetectionModel, family: Family) -> Iterator[Taps]:
    """Collect what attention gathers while the block runs; `trunk` has the encoder, if any, and the decoder."""
    taps, handles = Taps(), []

    def answered(into: list[Tensor]) -> Callable[..., None]:
        return lambda _module, _arguments, output: into.append(output if isinstance(output, Tensor) else output[0])

    for layer in trunk.decoder.layers:
        attention, projection = family.cross_attention(layer), family.output_projection
        if attention is not None and projection is not None:
            gathered = getattr(attention, projection)
            handles.append(gathered.register_forward_pre_hook(lambda _module, given: taps.decoder.append(given[0])))
        elif attention is not None:
            handles.append(attention.register_forward_hook(answered(taps.decoder)))
    handles += [attention.register_forward_hook(answered(taps.encoder)) for attention in encoder_attentions(trunk)]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def encoder_attentions(trunk: nn.Module) -> list[nn.Module]:
    """The self-attention of every encoder layer, dense or deformable; empty in a family without an encoder."""
    encoder = getattr(trunk, "encoder", nn.Module())
    return [module for name, module in encoder.named_modules() if name.endswith("self_attn")]
