"""Focal and global distillation (FGD, Yang et al., CVPR 2022): a baseline for detectors of any kind.

Focal: the student's features are pulled toward the teacher's, apart for the objects' cells and the background's, and more where
the teacher's attention lies:

    A_s = H W softmax(mean_c |F| / T),    A_c = C softmax(mean_hw |F| / T)
    L_fg = sum( A_s^T A_c^T m_fg (F_T - F_S)^2 ) / B,  L_bg the same with m_bg
    L_att = ( sum |A_s^S - A_s^T| + sum |A_c^S - A_c^T| ) / B

m_fg is 1 / (cells of the box) inside an object's box, the largest where boxes overlap, and m_bg is 1 / (background cells of the
image) elsewhere. Global: what a context block (GCNet) makes of both, one block each,

    L_rel = sum( R(F_S) - R(F_T) )^2 / B

Levels are added. Padding is in no sum, no mean and no softmax, and H W counts the other cells.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from leandetr.detectors.detector import Detector
from leandetr.distillation.levels import Level, Levels, width_of
from leandetr.distillation.term import Term, total
from leandetr.structures import Batch, DetectorOutput, Target

TEMPERATURE = 0.5
#: for one-stage detectors, which detection transformers resemble in looking at every cell once
FOREGROUND, BACKGROUND, ATTENTION, RELATION = 1e-3, 5e-4, 5e-4, 5e-6


class FocalGlobal(Term):
    """Imitates features where objects are and where the teacher looks, the rest apart, and their global relations.

    Args:
        levels: brings the two detectors' feature maps together.
        width: channels of the teacher's maps.
    """

    name = "fgd"
    needs = frozenset({"features"})

    def __init__(self, levels: Levels, width: int) -> None:
        super().__init__()
        self.levels = levels
        self.student_context, self.teacher_context = ContextBlock(width), ContextBlock(width)

    @classmethod
    def build(cls, student: Detector, teacher: Detector) -> Self:
        return cls(Levels.build(student, teacher), width_of(teacher))

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """Features of both and the objects -> "foreground", "background", "attention", "relation", each with its weight."""
        parts = [self.losses(level, batch["labels"]) for level in self.levels(student, teacher, batch)]
        return {name: total(part[name] for part in parts) for name in parts[0]}

    def losses(self, level: Level, labels: list[Target]) -> dict[str, Tensor]:
        images = len(level.teacher)
        with torch.no_grad():
            taught_spatial, taught_channel = attention(level.teacher, level.valid)
            masks = object_masks(level, labels)
        spatial, channel = attention(level.student, level.valid)
        squares = ((level.teacher - level.student).square() * taught_channel).sum(1, keepdim=True) * taught_spatial
        foreground, background = ((squares * mask).sum() / images for mask in masks)
        apart = (spatial - taught_spatial).abs().sum() + (channel - taught_channel).abs().sum()
        relation = self.student_context(level.student, level.valid) - self.teacher_context(level.teacher, level.valid)
        return {
            "foreground": FOREGROUND * foreground,
            "background": BACKGROUND * background,
            "attention": ATTENTION * apart / images,
            "relation": RELATION * (relation.square() * level.valid).sum() / images,
        }


def attention(features: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, h, w), (B, 1, h, w) -> A_s (B, 1, h, w), zero in padding, and A_c (B, C, 1, 1)."""
    cells = valid.sum((2, 3), keepdim=True)
    size = features.abs()
    by_cell = (size.mean(1, keepdim=True) / TEMPERATURE).masked_fill(valid == 0, -torch.inf)
    by_channel = (size * valid).sum((2, 3), keepdim=True) / cells / TEMPERATURE
    spatial = cells * by_cell.flatten(1).softmax(1).view_as(by_cell)
    return spatial, features.shape[1] * by_channel.softmax(1)


def object_masks(level: Level, labels: list[Target]) -> tuple[Tensor, Tensor]:
    """m_fg and m_bg, (B, 1, h, w). A box reaches from the cell of its first corner to the one after its second."""
    corners, real = level.objects(labels)
    height, width = level.valid.shape[-2:]
    low, high = corners[..., :2].floor(), corners[..., 2:].ceil()
    columns, rows = (torch.arange(side, device=low.device) for side in (width, height))
    across = (columns >= low[..., :1]) & (columns <= high[..., :1])  # (B, G, w)
    down = (rows >= low[..., 1:]) & (rows <= high[..., 1:])
    inside = down[..., :, None] & across[..., None, :] & real[..., None, None]
    share = inside / (high - low + 1).prod(-1)[..., None, None]
    nowhere = torch.zeros_like(level.valid)
    foreground = torch.cat([nowhere, share], 1).amax(1, keepdim=True) * level.valid
    background = (foreground == 0) * level.valid
    return foreground, background / background.sum((2, 3), keepdim=True).clamp(min=1)


class ContextBlock(nn.Module):
    """Adds to every cell what an attention-weighted mean of all cells says (GCNet, Cao et al., 2019). Starts as the identity.

    Args:
        width: channels C, at least 2.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(width, 1, 1)
        self.transform = nn.Sequential(
            nn.Linear(width, width // 2), nn.LayerNorm(width // 2), nn.ReLU(), nn.Linear(width // 2, width)
        )
        for parameter in self.transform[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, valid: Tensor) -> Tensor:
        """(B, C, h, w), (B, 1, h, w) -> (B, C, h, w)."""
        weights = self.score(features).float().masked_fill(valid == 0, -torch.inf).flatten(2).softmax(-1)
        context = torch.einsum("bcs,bs->bc", features.flatten(2), weights[:, 0])
        return features + self.transform(context)[..., None, None]
