"""The operators of an AdaMixer stage (Gao et al., "AdaMixer: A Fast-Converging Query-Based Object Detector", CVPR 2022).

A query is a content vector q of D channels and a position (x, y, z, r): centre in pixels, z = log2 of the box's size and
r = log2 of its height over its width, so that w = 2^(z - r/2) and h = 2^(z + r/2). Shapes: B images, N queries, D channels in
G groups of C = D / G, P sampled points a group, M mixed points, K classes.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DetrConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.detr.modeling_detr import DetrSelfAttention

from leandetr.detectors.models.detr_layers import SetLossConfig

SMALLEST_SIDE = 1e-3  # pixels; keeps the logarithms of a degenerate reference box finite
PIXELS_OF_CODE = 1000.0  # centres are divided by this before the sine code, which is made for values of about 1
LEVEL_SOFTNESS = 2.0  # tau of the weights over the feature levels


def position_of_boxes(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Boxes (B, N, 4) as (cx, cy, w, h) relative to images of (height, width) image_sizes (B, 2) -> (x, y, z, r), (B, N, 4)."""
    size = image_sizes.flip(-1)[:, None]
    centre, sides = boxes[..., :2] * size, (boxes[..., 2:] * size).clamp(min=SMALLEST_SIDE).log2()
    width, height = sides.unbind(-1)
    return torch.cat([centre, ((width + height) / 2)[..., None], (height - width)[..., None]], -1)


def sides_of(position: Tensor) -> Tensor:
    """(x, y, z, r), (..., 4) -> width and height in pixels, (..., 2)."""
    z, r = position[..., 2:3], position[..., 3:]
    return torch.exp2(torch.cat([z - r / 2, z + r / 2], -1))


def boxes_of_position(position: Tensor, image_sizes: Tensor) -> Tensor:
    """The inverse of `position_of_boxes`. Boxes are not clipped: a refined one may reach over the image's border."""
    return torch.cat([position[..., :2], sides_of(position)], -1) / image_sizes.flip(-1).repeat(1, 2)[:, None]


def position_code(position: Tensor, width: int) -> Tensor:
    """(B, N, 4) -> (B, N, width): x / 1000, y / 1000, z and r, each as width / 4 interleaved sines and cosines (T = 10^4)."""
    steps = torch.arange(width // 8, device=position.device, dtype=position.dtype)
    values = torch.cat([position[..., :2] / PIXELS_OF_CODE, position[..., 2:]], -1)
    angles = values[..., None] / 10000.0 ** (8 * steps / width)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(2)


def log_iof(position: Tensor) -> Tensor:
    """(B, N, 4) -> (B, N, N): log(IoF_ij + 1e-7), IoF_ij = intersection of boxes i and j over the area of box i."""
    centre, half = position[..., :2], sides_of(position) / 2
    low, high = centre - half, centre + half
    overlap = torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(low[:, :, None], low[:, None])
    area = _product(2 * half).clamp(min=1e-6)
    return torch.log(_product(overlap.clamp(min=0)) / area[..., None] + 1e-7)


def _product(sides: Tensor) -> Tensor:
    """(..., 2) -> (...); Core ML has no `prod`."""
    width, height = sides.unbind(-1)
    return width * height


def sample_3d(maps: Sequence[Tensor], points: Tensor, strides: Sequence[int]) -> Tensor:
    """Features at points in the pyramid: bilinear in a level, levels blended by how near their scale is to the point's depth.

        sum over levels l of softmax_l(-(z - log2 stride_l)^2 / 2) * bilinear(level_l at (x, y) / stride_l)

    A map's cell i covers the pixels from i * stride to (i + 1) * stride; outside a map there are zeros.

    Args:
        maps: one (B * G, C, h, w) map a level, every image's channels split in G groups.
        points: (B, N, G, P, 3), x and y in pixels and depth z.
        strides: pixels a cell, one a level.

    Returns:
        (B, N, G, P, C) in the points' precision.
    """
    groups = points.shape[2]
    scales = torch.tensor([math.log2(stride) for stride in strides], device=points.device, dtype=points.dtype)
    by_group = points.transpose(1, 2).flatten(0, 1)  # (B * G, N, P, 3)
    weights = (-((by_group[..., 2:] - scales) ** 2) / LEVEL_SOFTNESS).softmax(-1)
    sampled: Any = 0
    for level, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        height, width = features.shape[-2:]
        extent = torch.tensor([width * stride, height * stride], device=points.device, dtype=points.dtype)
        grid = 2 * by_group[..., :2] / extent - 1
        found = F.grid_sample(features, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        sampled = sampled + found * weights[..., level][:, None]
    return sampled.unflatten(0, (-1, groups)).permute(0, 3, 1, 4, 2)


class LevelNorm(nn.GroupNorm):
    """Group normalisation with statistics over the valid cells, so that padding changes nothing; zeros in the others.

    The published code has this norm after the neck's convolutions, shared by the levels, and counts the padding.
    """

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """features (B, D, h, w), valid (B, 1, h, w) boolean or None where every cell is -> (B, D, h, w)."""
        if valid is None:
            return super().forward(features)
        grouped, inside = features.unflatten(1, (self.num_groups, -1)), valid[:, None].to(features.dtype)
        count = inside.sum((2, 3, 4), keepdim=True) * grouped.shape[2]
        centred = grouped - (grouped * inside).sum((2, 3, 4), keepdim=True) / count
        variance = (centred**2 * inside).sum((2, 3, 4), keepdim=True) / count
        normed = (centred * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        return (normed * self.weight[:, None, None] + self.bias[:, None, None]) * valid


class AdaptiveSampling(nn.Module):
    """Where a query looks: P points a group, offsets in units of the box's sides and in octaves of depth.

    point = (x + dx w, y + dy h, z + dz) with (dx, dy, dz) = Linear(q). The weights start at zero and the biases spread over the
    box, one octave finer than it (dz = -1), so training starts from fixed random points in every box.
    """

    def __init__(self, config: SetLossConfig) -> None:
        super().__init__()
        self.groups, self.points = config.sampling_groups, config.sampling_points
        self.strides = list(config.feature_strides)
        self.offsets = nn.Linear(config.d_model, self.groups * self.points * 3)

    def forward(self, content: Tensor, position: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """content (B, N, D), position (B, N, 4), maps as in `sample_3d` -> (B, N, G, P, C)."""
        offsets = self.offsets(content).unflatten(-1, (self.groups, self.points, 3)).to(position.dtype)
        sides = sides_of(position)[:, :, None, None]
        centre, depth = position[:, :, None, None, :2], position[:, :, None, None, 2:3]
        points = torch.cat([centre + offsets[..., :2] * sides, depth + offsets[..., 2:]], -1)
        return sample_3d(maps, points, self.strides)


class AdaptiveMixing(nn.Module):
    """What a query makes of its samples: one Linear of the query yields, for each group, a channel mixer W (C, C) and a spatial
    mixer S (M, P); x <- ReLU(LN(x W)), x <- ReLU(LN(S x)), and a Linear of the result is added to the query.

    The norms have no weights and run over both last dimensions. The two Linears hold most of AdaMixer's parameters.
    """

    def __init__(self, config: SetLossConfig) -> None:
        super().__init__()
        self.groups, self.points, self.mixed = config.sampling_groups, config.sampling_points, config.mixing_points
        self.channels = config.d_model // self.groups
        self.parameters_of_query = nn.Linear(
            config.d_model, self.groups * (self.channels**2 + self.mixed * self.points)
        )  # a group's row: W, then S
        self.output = nn.Linear(self.groups * self.mixed * self.channels, config.d_model)

    def forward(self, sampled: Tensor, content: Tensor) -> Tensor:
        """sampled (B, N, G, P, C), content (B, N, D) -> (B, N, D)."""
        parameters = self.parameters_of_query(content).unflatten(-1, (self.groups, -1))
        channel, spatial = parameters.split([self.channels**2, self.mixed * self.points], -1)
        channel = channel.unflatten(-1, (self.channels, self.channels))
        spatial = spatial.unflatten(-1, (self.mixed, self.points))
        mixed = sampled @ channel
        mixed = F.layer_norm(mixed, mixed.shape[-2:]).relu()
        mixed = spatial @ mixed
        mixed = F.layer_norm(mixed, mixed.shape[-2:]).relu()
        return content + self.output(mixed.flatten(2))


def _head(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, outputs))


class AdaMixerDecoderLayer(GradientCheckpointingLayer):
    """One stage: self-attention biased by IoF, sampling, mixing, feed-forward network, and the stage's own two heads."""

    def __init__(self, config: SetLossConfig) -> None:
        super().__init__()
        width = config.d_model
        self.self_attn = DetrSelfAttention(
            cast(DetrConfig, config), hidden_size=width, num_attention_heads=config.decoder_attention_heads
        )
        self.iof_temperature = nn.Parameter(torch.empty(config.decoder_attention_heads))
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.sampling = AdaptiveSampling(config)
        self.mixing = AdaptiveMixing(config)
        self.mixing_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.decoder_ffn_dim)
        self.fc2 = nn.Linear(config.decoder_ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.class_head = _head(width, config.num_labels)
        self.box_head = _head(width, 4)

    def attention_bias(self, position: Tensor) -> Tensor:
        """position (B, N, 4) -> (B, heads, N, N): the head's learned temperature times log(IoF + 1e-7)."""
        return self.iof_temperature[:, None, None] * log_iof(position)[:, None]

    def forward(self, content: Tensor, position: Tensor, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """content (B, N, D), position (B, N, 4), maps as in `sample_3d` -> content, logits (B, N, K), refined position.

        Gradients reach earlier stages through the content only; the position is detached where a stage begins. The maps are
        positional arguments, because re-entrant gradient checkpointing differentiates nothing else.
        """
        position = position.detach()
        # the code is added before queries, keys AND values are projected, and stays in the residual
        content = content + position_code(position, content.shape[-1]).to(content.dtype)
        attended, _ = self.self_attn(content, attention_mask=self.attention_bias(position).to(content.dtype))
        content = self.self_attn_layer_norm(content + attended)
        sampled = self.sampling(content, position, maps).to(content.dtype)
        content = self.mixing_layer_norm(self.mixing(sampled, content))
        content = self.final_layer_norm(content + self.fc2(self.fc1(content).relu()))
        delta = self.box_head(content).to(position.dtype)
        moved = position[..., :2] + delta[..., :2] * torch.exp2(position[..., 2:3])
        return content, self.class_head(content), torch.cat([moved, position[..., 2:] + delta[..., 2:]], -1)
