"""A penalty that keeps distillation queries apart from object queries.

SwinDETR finds the two sets nearly parallel in every decoder layer (cosine about 0.99): the distillation queries then say what
the object queries say. Against this collapse, over all layers, images and pairs of an object query i and a distillation query
j,

    L = mean max(|cos(h_i, h_j)| - margin, 0)^2
"""

from __future__ import annotations

from typing import Self

from torch import Tensor
from torch.nn import functional as F

from leandetr.detectors.detector import Detector
from leandetr.distillation.term import Term
from leandetr.errors import UserError
from leandetr.structures import Batch, DetectorOutput


class Orthogonality(Term):
    """Pushes the states of the two sets toward right angles, in every decoder layer.

    Args:
        margin: in [0, 1), the cosine up to which nothing is asked.

    Raises:
        UserError: a margin outside [0, 1).
    """

    name = "orthogonality"
    needs = frozenset()
    detections_suffice = True

    def __init__(self, *, margin: float = 0.1) -> None:
        super().__init__()
        if not 0 <= margin < 1:
            raise UserError(f"margin of the orthogonality term is {margin}; give a cosine of at least 0 and below 1")
        self.margin = margin

    @classmethod
    def build(cls, student: Detector, teacher: Detector | None, **options: float) -> Self:
        return cls(**options)

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """States (L, B, N, D) and (L, B, N_d, D) of the student's two sets -> {"cosine": scalar in [0, 1]}.

        Raises UserError where there is one set alone.
        """
        if student.distillation is None:
            raise UserError("the orthogonality term needs distillation queries; add the method hard-label or soft-label")
        objects, others = (F.normalize(part.hidden.float(), dim=-1) for part in (student, student.distillation))
        cosines = objects @ others.mT
        return {"cosine": (cosines.abs() - self.margin).clamp(min=0).square().mean()}
