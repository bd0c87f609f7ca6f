"""The student's feature maps beside the teacher's, cell by cell: what every feature distillation compares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leandetr.boxes import to_corners
from leandetr.detectors.detector import Detector
from leandetr.distillation.frames import cut_out, shares
from leandetr.losses import pad_targets
from leandetr.structures import Batch, DetectorOutput, Target


class Level(NamedTuple):
    """student, teacher: (B, D, h, w), with the teacher's D, h and w, in units of the teacher's root mean square. valid:
    (B, 1, h, w), 1 where there is image, 0 in padding. extent: (B, 2), the image's width and height in cells, from the top left
    corner on. unit: scalar, that root mean square."""

    student: Tensor
    teacher: Tensor
    valid: Tensor
    extent: Tensor
    unit: Tensor

    def raw(self) -> Level:
        """With the maps in the detectors' own units."""
        return self._replace(student=self.student * self.unit, teacher=self.teacher * self.unit)

    def objects(self, labels: Sequence[Target]) -> tuple[Tensor, Tensor]:
        """The B images' boxes as (x0, y0, x1, y1) in cells, (B, G, 4), with G the largest count, and which are real, (B, G)."""
        targets = pad_targets(labels)
        corners = to_corners(targets.boxes) * self.extent.repeat(1, 2)[:, None]
        sizes = torch.tensor(targets.sizes, device=corners.device)
        return corners, torch.arange(corners.shape[1], device=corners.device) < sizes[:, None]


class Levels(nn.Module):
    """Pairs the levels of the two detectors and brings the student's maps to the teacher's width and size.

    A 1x1 convolution adapts the width where it differs; it is shared by the levels, which have the same channels. Detectors
    with equally many levels are paired in order; else each level of the one with fewer is paired with the other's of the most
    similar number of cells.

    A level is measured by the root mean square of the teacher's values where there is image. Features behind a LayerNorm have
    about 1; a convolutional encoder's may have a fiftieth, and no weight of a paper would mean the same there.

    Args:
        student_width, teacher_width: channels of the feature maps.
        cut_padding: the student sees padded batches and the teacher each image without its padding, see `teacher.View`.
        kernel_size: of the convolution; a larger one adapts equal widths too.
    """

    def __init__(self, student_width: int, teacher_width: int, cut_padding: bool = False, kernel_size: int = 1) -> None:
        super().__init__()
        needless = student_width == teacher_width and kernel_size == 1
        padding = kernel_size // 2
        self.adapter = nn.Identity() if needless else nn.Conv2d(student_width, teacher_width, kernel_size, padding=padding)
        self.cut_padding = cut_padding

    @classmethod
    def build(cls, student: Detector, teacher: Detector, kernel_size: int = 1) -> Levels:
        padded = student.preprocessing.size is None and teacher.preprocessing.size is not None
        return cls(width_of(student), width_of(teacher), padded, kernel_size)

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> list[Level]:
        """Features (B, d, h, w) a level of each -> the pairs of levels."""
        return [self._pair(*maps, batch["pixel_mask"]) for maps in pair_levels(student.features, teacher.features)]

    def _pair(self, student_map: Tensor, teacher_map: Tensor, pixel_mask: Tensor) -> Level:
        adapted, size = self.adapter(student_map).float(), teacher_map.shape[-2:]
        cells = teacher_map.new_tensor(size[::-1])
        if self.cut_padding:
            everywhere = torch.ones_like(teacher_map[:, :1])
            return _in_units(cut_out(adapted, pixel_mask, size), teacher_map, everywhere, cells.expand(len(adapted), 2))
        if adapted.shape[-2:] != size:  # another stride or another input size
            adapted = F.interpolate(adapted, size, mode="bilinear", align_corners=False)
        valid = F.interpolate(pixel_mask[:, None].to(teacher_map.dtype), size, mode="nearest")
        return _in_units(adapted, teacher_map, valid, shares(pixel_mask) * cells)


def _in_units(student: Tensor, teacher: Tensor, valid: Tensor, extent: Tensor) -> Level:
    mean_square = (teacher.square().mean(1, keepdim=True) * valid).sum() / valid.sum()
    unit = mean_square.sqrt().clamp(min=1e-6)
    return Level(student / unit, teacher / unit, valid, extent, unit)


def pair_levels(student: list[Tensor], teacher: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Student and teacher maps (B, D, h, w), paired in order or by the nearest number of cells."""

    def nearest(level: Tensor, others: list[Tensor]) -> Tensor:
        return min(others, key=lambda other: abs(math.log(other.shape[-2:].numel() / level.shape[-2:].numel())))

    if len(student) == len(teacher):
        return list(zip(student, teacher))
    if len(student) < len(teacher):
        return [(level, nearest(level, teacher)) for level in student]
    return [(nearest(level, student), level) for level in teacher]


def width_of(detector: Detector) -> int:
    """Channels of a detector's queries and memory; some families call it hidden_size, others mean the backbone's by that."""
    return getattr(detector.config, "d_model", None) or detector.config.hidden_size
