"""Fine-grained feature imitation (FGFI, Wang et al., CVPR 2019): a baseline from anchor-based detectors.

The student imitates the teacher near objects alone: in the cells that have an anchor whose IoU with an object is more than half
of the largest IoU that any anchor of the level has with this object.

    L = 1 / (2 N_p) * sum over the N_p cells and all channels of (phi(F_S) - F_T)^2

phi is a 3x3 convolution. A detection transformer has no anchors: here every cell has anchors of height to width 1:2, 1:1 and
2:1, whose area is 8 by 8 cells. A single level has areas of 2 by 2, 4 by 4 and 8 by 8 cells, so that objects of all sizes find
an anchor like them. Levels are averaged; padding is not imitated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import box_iou

from leandetr.distillation.level_term import LevelTerm
from leandetr.distillation.levels import Level
from leandetr.structures import Batch, DetectorOutput, Target

THRESHOLD = 0.5
RATIOS = (0.5, 1.0, 2.0)  # height to width
SIDES, SIDES_OF_A_SINGLE_LEVEL = (8,), (2, 4, 8)  # in cells


class FineGrained(LevelTerm):
    """Mean squared error between the teacher's features and the adapted student's in the cells near objects."""

    name = "fgfi"
    kernel_size = 3

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """Features of both and the objects -> {"imitation": scalar}, 0 without objects."""
        levels = self.levels(student, teacher, batch)
        sides = SIDES_OF_A_SINGLE_LEVEL if len(levels) == 1 else SIDES
        losses = []
        for level in levels:
            with torch.no_grad():
                near = near_objects(level, batch["labels"], sides)
            squares = (level.student - level.teacher).square() * near
            losses.append(squares.sum() / (2 * near.sum().clamp(min=1)))
        return {"imitation": torch.stack(losses).mean()}


def near_objects(level: Level, labels: list[Target], sides: tuple[int, ...]) -> Tensor:
    """(B, 1, h, w), 1 in the cells that are imitated."""
    corners, real = level.objects(labels)
    if not corners.shape[1]:
        return torch.zeros_like(level.valid)
    height, width = level.valid.shape[-2:]
    overlap = box_iou(corners, anchors(height, width, sides, corners.device).expand(len(corners), -1, -1))
    overlap = overlap.unflatten(2, (height, width, -1)) * real[..., None, None, None]  # (B, G, h, w, A)
    chosen = overlap > THRESHOLD * overlap.amax((2, 3, 4), keepdim=True)
    return chosen.any(4).any(1, keepdim=True) * level.valid


def anchors(height: int, width: int, sides: tuple[int, ...], device: torch.device) -> Tensor:
    """(height * width * A, 4) corners in cells: row by row, in every cell A = sides x ratios boxes around its centre."""
    shapes = torch.tensor(
        [(side / math.sqrt(ratio), side * math.sqrt(ratio)) for side in sides for ratio in RATIOS], device=device
    )
    rows, columns = (torch.arange(side, device=device) + 0.5 for side in (height, width))
    centres = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).view(-1, 1, 2)
    return torch.cat([centres - shapes / 2, centres + shapes / 2], -1).view(-1, 4)
