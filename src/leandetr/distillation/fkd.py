"""Feature-based knowledge distillation with attention and non-local blocks (FKD, Zhang and Ma, ICLR 2021): a baseline.

With the attention maps G_s = mean_c |F| over the cells and G_c = mean_hw |F| over the channels, and the masks that student and
teacher make together, M_s = H W softmax((G_s^S + G_s^T) / T) and M_c = C softmax((G_c^S + G_c^T) / T), every level gives

    L = 4e-3 ( |G_s^S - G_s^T| + |G_c^S - G_c^T| )  +  7e-5 sqrt( sum (F_T - phi(F_S))^2 M_s M_c )
      + 7e-5 | phi'(NL(F_S)) - NL(F_T) |

where NL is a non-local block (embedded Gaussian), one for the student and one for the teacher. Norms are of one image's tensor;
images are averaged, levels added. The masks carry no gradient. Padding is in no norm, no mean and no softmax, and H W counts
the other cells. Student maps are taken after phi, so that the widths agree in every part.
"""

from __future__ import annotations

from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leandetr.detectors.detector import Detector
from leandetr.distillation.levels import Level, Levels, width_of
from leandetr.distillation.term import Term, total
from leandetr.structures import Batch, DetectorOutput

TEMPERATURE = 0.5
ATTENTION, IMITATION, RELATION = 4e-3, 7e-5, 7e-5


class AttentionGuided(Term):
    """Imitates attention maps, features where either detector attends, and the relations between cells.

    Args:
        levels: brings the two detectors' feature maps together.
        width: channels of the teacher's maps.
    """

    name = "fkd"
    needs = frozenset({"features"})

    def __init__(self, levels: Levels, width: int) -> None:
        super().__init__()
        self.levels = levels
        self.student_relations, self.teacher_relations = NonLocalBlock(width), NonLocalBlock(width)
        self.relation_adapter = nn.Conv2d(width, width, 1)
        nn.init.dirac_(self.relation_adapter.weight)  # the blocks start as the identity, and so does what joins them
        nn.init.zeros_(cast(Tensor, self.relation_adapter.bias))

    @classmethod
    def build(cls, student: Detector, teacher: Detector) -> Self:
        return cls(Levels.build(student, teacher), width_of(teacher))

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """Features of both -> "attention", "imitation" and "relation", each with its weight."""
        parts = [self.losses(level) for level in self.levels(student, teacher, batch)]
        return {name: total(part[name] for part in parts) for name in parts[0]}

    def losses(self, level: Level) -> dict[str, Tensor]:
        spatial, channel = attention(level.student, level.valid)
        with torch.no_grad():
            taught_spatial, taught_channel = attention(level.teacher, level.valid)
            by_cell = ((spatial + taught_spatial) / TEMPERATURE).masked_fill(level.valid == 0, -torch.inf)
            cells = level.valid.sum((2, 3), keepdim=True)
            mask = cells * by_cell.flatten(1).softmax(1).view_as(by_cell)
            mask = mask * channel.shape[1] * ((channel + taught_channel) / TEMPERATURE).softmax(1)
        relation = self.relation_adapter(self.student_relations(level.student, level.valid))
        apart = (relation - self.teacher_relations(level.teacher, level.valid)) * level.valid
        attended = norms((spatial - taught_spatial) * level.valid) + norms(channel - taught_channel)
        return {
            "attention": ATTENTION * attended.mean(),
            "imitation": IMITATION * norms((level.teacher - level.student) * mask.sqrt()).mean(),
            "relation": RELATION * norms(apart).mean(),
        }


def attention(features: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, h, w), (B, 1, h, w) -> G_s (B, 1, h, w) and G_c (B, C, 1, 1)."""
    size = features.abs()
    return size.mean(1, keepdim=True), (size * valid).sum((2, 3), keepdim=True) / valid.sum((2, 3), keepdim=True)


def norms(tensor: Tensor) -> Tensor:
    """(B, ...) -> (B,) Euclidean norms; where a norm is 0, so is its gradient."""
    return tensor.float().flatten(1).norm(dim=1)


class NonLocalBlock(nn.Module):
    """Adds to every cell an attention over all cells (Wang et al., CVPR 2018, embedded Gaussian). Starts as the identity.

    Args:
        width: channels C, at least 2; keys, queries and values have half as many.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(width, width // 2, 1) for _ in range(3))
        self.out = nn.Conv2d(width // 2, width, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, valid: Tensor) -> Tensor:
        """(B, C, h, w), (B, 1, h, w) -> (B, C, h, w)."""
        queries, keys, values = (part(features).flatten(2).mT[:, None] for part in (self.query, self.key, self.value))
        seen = valid.bool().flatten(2)[:, :, None]  # (B, 1, 1, S)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)[:, 0]
        return features + self.out(attended.mT.unflatten(2, features.shape[-2:]))
