"""Masked generative distillation (MGD, Yang et al., ECCV 2022): a baseline for detectors of any kind.

From the student's features, of which a random part of the cells is hidden, a small generator must make the teacher's whole map:

    L = sum over levels of  sum( (F_T - G(m phi(F_S)))^2 ) / B,    G = conv3x3, ReLU, conv3x3

m hides a cell with all its channels with probability 0.65. Padding is hidden from the generator and is not compared.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from leandetr.detectors.detector import Detector
from leandetr.distillation.levels import Level, Levels, width_of
from leandetr.distillation.term import Term, total
from leandetr.structures import Batch, DetectorOutput

HIDDEN = 0.65


class MaskedGeneration(Term):
    """Generates the teacher's features from some cells of the student's.

    Args:
        levels: brings the two detectors' feature maps together.
        width: channels of the teacher's maps.
    """

    name = "mgd"
    needs = frozenset({"features"})

    def __init__(self, levels: Levels, width: int) -> None:
        super().__init__()
        self.levels = levels
        self.generator = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, padding=1)
        )

    @classmethod
    def build(cls, student: Detector, teacher: Detector) -> Self:
        return cls(Levels.build(student, teacher), width_of(teacher))

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """Features of both -> {"generation": scalar}. The mask is drawn from torch's global generator."""
        return {"generation": total(self.generation(level) for level in self.levels(student, teacher, batch))}

    def generation(self, level: Level) -> Tensor:
        seen = (torch.rand_like(level.valid) >= HIDDEN) * level.valid
        made = self.generator(level.student * seen).float()
        return ((level.teacher - made).square() * level.valid).sum() / len(made)
