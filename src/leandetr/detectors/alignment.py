"""Distribution alignment of the decoder's queries (Q-DETR, eq. 2.32), a part of the detector.

    q* = (q - mean(q)) / sqrt(var(q) + 1e-5) * gamma + beta

over the d channels of a head; gamma (1 at the start) and beta (0) are learned and shared by heads and queries: a layer norm.
It is what the quantizer of the query sees, so that queries of all images and steps spread over the same grid.

Put into a trained detector, gamma = 1 and beta = 0 change what it computes. `fit_alignment` chooses them so that the aligned
queries are as near as they can be to those that the detector was trained with:

    gamma, beta = argmin E || q - (n gamma + beta) ||^2,    n = (q - mean(q)) / sqrt(var(q) + 1e-5)

which is a straight line through each channel, gamma = cov(q, n) / var(n) and beta = mean(q) - gamma mean(n).

Deformable attention has no product of queries and keys. There a query acts through the sampling offsets and weights that two
linear layers make of it, content and position added: this sum is aligned, head by head of its channels, and offsets and weights
come from the aligned one. The residual path keeps the query as it is, as in dense attention. Those layers compute in float
unless a scheme's overrides say otherwise, so that this alignment feeds no quantizer; the same decoder's self-attention does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from leandetr.detectors.attention import open_attention
from leandetr.detectors.families.registry import family_of
from leandetr.errors import UserError, unknown
from leandetr.structures import DetectionModel

#: which of the decoder's attentions have their query aligned
ALIGNMENTS = {"cross": ("cross",), "self": ("self",), "both": ("cross", "self")}


class HeadNorm(nn.LayerNorm):
    """A layer norm over the d channels of each head of (..., H d), with one scale and shift for all heads."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states.unflatten(-1, (-1, *self.normalized_shape))).flatten(-2)


def alignment_of(config: PreTrainedConfig) -> str | None:
    """A key of `ALIGNMENTS`, or None for a detector without alignment."""
    return getattr(config, "query_alignment", None)


def quantized_attention(model: DetectionModel) -> str:
    """Of a decoder's attentions the one whose query meets a quantizer: "cross", or "self" where the former samples."""
    cross = [family_of(model.config).cross_attention(layer) for layer in model.model.decoder.layers]
    return "self" if any(hasattr(attention, "sampling_offsets") for attention in cross) else "cross"


def align_queries(model: DetectionModel, which: str = "cross") -> None:
    """Build the alignment into a detector's model; one that has it keeps it. Its configuration says so, and `load` rebuilds it.

    Args:
        model: a detector's model; its decoder layers are changed in place.
        which: a key of `ALIGNMENTS`.

    Raises:
        UserError: no such choice, another one than the model already has, or a family whose attention cannot be reached.
    """
    if which not in ALIGNMENTS:
        raise unknown("query alignment", which, ALIGNMENTS)
    if alignment_of(model.config) not in (None, which):
        raise UserError(
            f"the model's queries are aligned in {alignment_of(model.config)} attention already; do not ask for {which}"
        )
    open_attention(model)
    family = family_of(model.config)
    for layer in model.model.decoder.layers:
        attentions = {"cross": family.cross_attention(layer), "self": layer.self_attn}
        for kind in ALIGNMENTS[which]:
            _align(attentions[kind], kind, model)
    model.config.query_alignment = which


@torch.no_grad()
def fit_alignment(model: DetectionModel, run: Callable[[], object]) -> None:
    """Choose scale and shift of every alignment so that aligned queries are, in the mean square, nearest to unaligned ones.

    Args:
        model: with alignments; what they had learned is forgotten. One that `run` does not reach keeps scale 1 and shift 0.
        run: calls the model, in evaluation mode, on images like those it was trained on. No query is aligned meanwhile, so that
            each layer sees what it was trained to see.
    """
    norms = [module for name, module in model.named_modules() if name.endswith(".align") and isinstance(module, nn.LayerNorm)]
    lines = {norm: _Line(*norm.normalized_shape) for norm in norms}

    def pass_by(norm: nn.LayerNorm, given: tuple[Tensor], aligned: Tensor) -> Tensor:
        lines[norm].update(aligned, given[0])
        return given[0]

    for norm in norms:
        norm.reset_parameters()
    handles = [norm.register_forward_hook(pass_by) for norm in norms]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    for norm, line in lines.items():
        if line.count:
            slope, shift = line.fitted()
            norm.weight.copy_(slope)
            norm.bias.copy_(shift)


class _Line:
    """Least squares of y = slope x + shift in each of d channels, from values that come batch by batch."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sums = torch.zeros(4, channels, dtype=torch.float64)  # of x, y, x x, x y

    def update(self, x: Tensor, y: Tensor) -> None:
        x, y = (values.reshape(-1, self.sums.shape[1]).double().cpu() for values in (x, y))
        self.count += len(x)
        self.sums += torch.stack([values.sum(0) for values in (x, y, x * x, x * y)])

    def fitted(self) -> tuple[Tensor, Tensor]:
        """slope (d,), shift (d,); a channel in which x never changes has slope 0."""
        x, y, xx, xy = self.sums / self.count
        slope = (xy - x * y) / (xx - x * x).clamp(min=torch.finfo(torch.float32).eps)
        return slope, y - slope * x


def _align(attention: Any, kind: str, model: DetectionModel) -> None:
    device = None if attention is None else next(attention.parameters()).device
    if hasattr(attention, "slots"):
        if type(attention.slots.align) is nn.Identity:
            # by the scale of the product: in Conditional DETR a head's query has the channels of content and position
            attention.slots.align = nn.LayerNorm(round(attention.scaling**-2), device=device)
    elif hasattr(attention, "sampling_offsets"):
        if not hasattr(attention, "align"):
            attention.align = HeadNorm(attention.d_model // attention.n_heads, device=device)
            attention.register_forward_pre_hook(_sample_by_aligned, with_kwargs=True)
    else:
        raise UserError(
            f"the queries of {model.config.model_type} cannot be aligned in {kind} attention, which has no product of queries "
            "and keys that could be reached; choose another alignment or none"
        )


def _sample_by_aligned(attention: Any, arguments: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Before a deformable attention: content plus position, aligned, in place of the two."""
    query, position = named["hidden_states"], named.get("position_embeddings")
    query = query if position is None else query + position
    return arguments, named | {"hidden_states": attention.align(query), "position_embeddings": None}
