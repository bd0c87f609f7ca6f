"""Where a decoder looks: the attention of every layer as a map from queries to queries, and from queries to cells.

Dense attention is read where its probabilities pass, before dropout; the fused kernel, which keeps none, is left for it.
Deformable attention has weights of sampled points in place of probabilities: each is shared out among the four cells that its
point is interpolated from, so that a row times the values is what the attention gathers. Heads are averaged: they have no
order, and a mean of distributions is one.

Shapes use B images, N queries, H heads, P points of all levels, S = sum of h w cells.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from leandetr.detectors.attention import open_attention
from leandetr.detectors.families.family import Family
from leandetr.structures import DetectionModel

#: fields of a `DetectorOutput`
FIELDS = ("self_attention", "cross_attention")


@contextmanager
def mapping(model: DetectionModel, family: Family, asked: Collection[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the maps of `FIELDS` that are asked for while the block runs, one of every decoder layer: (B, N, N), and
    (B, N, S). None of a field that the family's layers do not have (AdaMixer looks at the image without attention)."""
    maps: dict[str, list[Tensor]] = {field: [] for field in FIELDS if field in asked}
    handles: list[RemovableHandle] = []
    if maps:
        open_attention(model)
    for layer in model.model.decoder.layers if maps else ():
        attentions = {"self_attention": family.self_attention(layer), "cross_attention": family.cross_attention(layer)}
        for field, into in maps.items():
            attention = attentions[field]
            if attention is not None:
                handles += _listening(attention, into)
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def own_rows(maps: Tensor, queries: slice) -> Tensor:
    """Self-attention (L, B, N, N) of all queries in a call -> of some of them among each other, rows that sum to 1."""
    return normalised(maps[:, :, queries, queries])


def normalised(rows: Tensor) -> Tensor:
    """(..., S), each row divided by its sum; a row of zeros stays one."""
    return rows / rows.sum(-1, keepdim=True).clamp(min=1e-6)


def _listening(attention: nn.Module, into: list[Tensor]) -> list[RemovableHandle]:
    parts: Any = attention
    if hasattr(attention, "slots"):
        return [parts.slots.probabilities.register_forward_hook(lambda _module, _given, found: into.append(mean(found)))]
    if hasattr(attention, "sampling_offsets"):
        return _sampling(attention, into)

    def ask(_module: nn.Module, given: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return given, kwargs | {"output_attentions": True}

    return [  # DAB-DETR's
        attention.register_forward_pre_hook(ask, with_kwargs=True),
        attention.register_forward_hook(lambda _module, _given, answer: into.append(mean(answer[1]))),
    ]


def mean(probabilities: Tensor) -> Tensor:
    """(B, H, N, S) -> (B, N, S), in single precision."""
    return probabilities.float().mean(1)


def _sampling(attention: nn.Module, into: list[Tensor]) -> list[RemovableHandle]:
    parts: Any = attention
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _given, answer: found.update({name: answer})

    def answered(module: nn.Module, _given: tuple, kwargs: dict[str, Any], _answer: Any) -> None:
        shapes = [(int(h), int(w)) for h, w in kwargs["spatial_shapes_list"]]
        places, weights, points = sampled(module, found["offsets"], found["weights"], kwargs["reference_points"], shapes)
        rows = splat(places, weights, points, shapes)
        seen = kwargs.get("attention_mask")
        into.append(normalised(rows if seen is None else rows * seen.to(rows.dtype)[:, None]))

    return [
        parts.sampling_offsets.register_forward_hook(keep("offsets")),
        parts.attention_weights.register_forward_hook(keep("weights")),
        attention.register_forward_hook(answered, with_kwargs=True),
    ]


def sampled(
    attention: Any, offsets: Tensor, logits: Tensor, references: Tensor, shapes: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor, list[int]]:
    """What transformers' deformable attentions sample, of what their two linear layers answered.

    references: (B, N, levels or 1, 2 or 4), relative to the image.

    Returns places (B, N, H, P, 2) in (x, y) relative to the map, weights (B, N, H, P) that sum to 1 over P, and how many of the
    P points each level has.
    """
    listed = getattr(attention, "n_points_list", None) or getattr(attention, "num_points_list", None)
    points = list(listed or [attention.n_points] * len(shapes))
    counts = torch.tensor(points, device=offsets.device)
    images, queries = offsets.shape[:2]
    moved = offsets.float().view(images, queries, attention.n_heads, sum(points), 2)
    weights = logits.float().view(images, queries, attention.n_heads, sum(points)).softmax(-1)
    references = references.float().expand(-1, -1, len(shapes), -1).repeat_interleave(counts, 2)[:, :, None]
    if references.shape[-1] == 2:
        sides = moved.new_tensor([(w, h) for h, w in shapes]).repeat_interleave(counts, 0)
        return references + moved / sides, weights, points
    each = counts.repeat_interleave(counts)[:, None]  # points of the level that a point belongs to
    scale = getattr(attention, "offset_scale", 0.5)
    return references[..., :2] + moved / each * references[..., 2:] * scale, weights, points


def splat(places: Tensor, weights: Tensor, points: Sequence[int], shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Points' weights on the cells that bilinear sampling reads: (B, N, H, P, 2), (B, N, H, P) -> (B, N, S), the mean of the
    heads. What falls outside of a map is lost."""
    levels = []
    for own, weight, (height, width) in zip(places.split(list(points), 3), weights.split(list(points), 3), shapes, strict=True):
        at = own * own.new_tensor([width, height]) - 0.5
        first = at.detach().floor()
        level = weight.new_zeros(*weight.shape[:2], height * width)
        for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
            cell = first + first.new_tensor([right, below])
            share = weight * (1 - (at - cell).abs()).prod(-1)
            x, y = cell.long().unbind(-1)
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(2)
            level = level.scatter_add(2, index, (share * inside).flatten(2))
        levels.append(level)
    return torch.cat(levels, 2) / weights.shape[2]
