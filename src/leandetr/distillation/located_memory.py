"""Located memory (after CLoCKDistill, Lan and Tian, WACV 2026): the encoder's answer is imitated where objects are.

    L = 1/B sum over images, levels, cells of  S (M + (1 - M) / 500) mean_c (F_T - phi(F_S))^2

M is 1 in cells that a box covers, and S there 1 over the cells of the smallest box that does, so that every object counts
alike; elsewhere S is 1 over the cells of the background. F is what the decoder attends to, phi a convolution where the widths
differ.

Known to us are the paper's abstract, and masks and weights (5e-5 and 1e-7) from another's port of its code. Ours: features are
in units of the teacher's root mean square and channels are averaged, so that the weights' ratio alone is kept. It is FGD's
foreground and background without its attention and relations, with FGD's masks.
"""

from __future__ import annotations

from torch import Tensor

from leandetr.distillation.fgd import object_masks
from leandetr.distillation.level_term import LevelTerm
from leandetr.distillation.levels import Level
from leandetr.distillation.term import total
from leandetr.structures import Batch, DetectorOutput, Target

RATIO = 500.0  # of a foreground's weight to a background's


class LocatedMemory(LevelTerm):
    """Imitates the teacher's memory object by object."""

    name = "located-memory"

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """Features of both and the objects -> "foreground" and "background", summed over the levels."""
        parts = [self.losses(level, batch["labels"]) for level in self.levels(student, teacher, batch)]
        return {name: total(part[name] for part in parts) for name in parts[0]}

    def losses(self, level: Level, labels: list[Target]) -> dict[str, Tensor]:
        squares = (level.teacher - level.student).square().mean(1, keepdim=True)
        foreground, background = ((squares * mask).sum() / len(squares) for mask in object_masks(level, labels))
        return {"foreground": foreground, "background": background / RATIO}
