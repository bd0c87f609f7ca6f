"""Feature imitation (FitNets, Romero et al., ICLR 2015).

The student's feature maps are pulled toward the teacher's, every cell alike:

    L = mean over levels, images, cells and channels of (F_T - phi(F_S))^2

The plainest feature distillation, and the baseline that every masked one has to beat. DETRDistill, table 3, reports +0.3 to
+0.8 AP for it on three detection transformers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leandetr.distillation.level_term import LevelTerm
from leandetr.distillation.levels import Level
from leandetr.structures import Batch, DetectorOutput


class FitNet(LevelTerm):
    """Mean squared error between the teacher's features and the adapted student's. Padded cells do not count."""

    name = "fitnet"

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """Features of both -> {"imitation": scalar}."""
        return {"imitation": torch.stack([imitation(level) for level in self.levels(student, teacher, batch)]).mean()}


def imitation(level: Level) -> Tensor:
    """The mean square over the level's cells that hold image."""
    squares = (level.teacher - level.student).square().mean(1, keepdim=True)
    return (squares * level.valid).sum() / level.valid.sum()
