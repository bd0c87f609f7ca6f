"""Alignment with a frozen vision model (after RT-DETRv4, arXiv 2510.25257): what a detector sees, beside what a DINO sees.

    L = mean over cells x of  1 - cos(P F[x], t[x])

F is the student's deepest map, P a linear projection of its channels that is there for training only, and t the model's
patches behind its final norm, without class token and registers, of the image resized so that patches are cells. Padding does
not count.

The paper aligns the map before RT-DETR's levels are fused; here it is what the decoder attends to, which every family has. It
also adapts the weight after every epoch to the term's share of the gradient; here the weight is fixed, and the log says the
gradient.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leandetr.detectors.detector import Detector
from leandetr.distillation.levels import width_of
from leandetr.distillation.term import Term
from leandetr.distillation.vision import VisionTeacher
from leandetr.structures import Batch, DetectorOutput


class VisionAlignment(Term):
    """Turns the student's deepest features to where a vision model's point.

    Args:
        width, channels: of the student's features and of the model's patches.
    """

    name = "vision-alignment"
    needs = frozenset({"patches"})

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(width, channels, 1)

    @classmethod
    def build(cls, student: Detector, teacher: VisionTeacher) -> Self:
        return cls(width_of(student), teacher.channels)

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """The student's features and the patches (B, C, h, w) -> {"cosine": scalar in [0, 2]}."""
        patches = teacher.patches
        assert patches is not None  # they were needed
        cells = patches.shape[-2:].numel()
        deepest = min(student.features, key=lambda level: abs(level.shape[-2:].numel() - cells))
        projected = self.projection(deepest).float()
        if projected.shape[-2:] != patches.shape[-2:]:
            projected = F.interpolate(projected, patches.shape[-2:], mode="bilinear", align_corners=False)
        valid = F.interpolate(batch["pixel_mask"][:, None].float(), patches.shape[-2:], mode="nearest")[:, 0]
        apart = 1 - torch.cosine_similarity(projected, patches, dim=1)
        return {"cosine": (apart * valid).sum() / valid.sum()}
