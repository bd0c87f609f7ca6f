"""A teacher's queries in the student's decoder: what query-prior assignment and KD-DETR's points have in common."""

from __future__ import annotations

from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leandetr.detectors.detector import Detector
from leandetr.distillation.levels import width_of
from leandetr.errors import UserError
from leandetr.structures import DetectorOutput, Queries

# The side, relative to the image, of the boxes that RT-DETR's encoder proposes on its finest level; each level doubles it.
FINEST_SIDE = 0.05


class QueryMap(nn.Module):
    """Brings a teacher's queries to the student's decoder.

    Learned queries pass a linear map where the widths differ; their reference points and anchors stay. Where a query's content
    is an encoder's cell (RT-DETR, D-FINE), only its box is the teacher's, and the content is read from the student's memory.

    Args:
        student: whose decoder will take them; it is not registered here, the distiller has it.
        teacher_width: channels of the teacher's queries.
    """

    def __init__(self, student: Detector, teacher_width: int) -> None:
        super().__init__()
        width = width_of(student)
        same = width == teacher_width or student.family.content_from_memory
        self.adapter = nn.Identity() if same else nn.Linear(teacher_width, width, bias=False)
        self._student = (student,)  # a tuple hides it from the module's parameters

    @classmethod
    def build(cls, term: str, student: Detector, teacher: Detector) -> Self:
        """Raises UserError, which names the term, where the two detectors mean different things by a query."""
        two_stage = any(getattr(detector.config, "two_stage", False) for detector in (student, teacher))
        if type(student.family) is not type(teacher.family) or two_stage:
            raise UserError(
                f"the {term} term cannot give a {teacher.config.model_type} teacher's queries to this "
                f"{student.config.model_type} student, whose queries mean something else; take a teacher of the same family "
                "that is not two-stage, or the methods logits,features"
            )
        return cls(student, width_of(teacher))

    def forward(self, queries: Queries, student: DetectorOutput, own_boxes: bool = False) -> Queries:
        """The teacher's M queries and the student's answer to the same batch -> queries of the student's width (B, M, D_S).

        own_boxes: see `queries_at`.
        """
        (detector,) = self._student
        if detector.family.content_from_memory:
            return queries_at(cast(Tensor, queries.reference).float(), detector, student, own_boxes)
        given = {name: getattr(queries, name) for name in ("content", "position", "reference")}
        given = {name: value.float() for name, value in given.items() if value is not None}
        return Queries(**{name: value if is_place(value) else self.adapter(value) for name, value in given.items()})


def is_place(values: Tensor) -> bool:
    """Reference points and anchors: two or four coordinates, where everything learned has a detector's width."""
    return values.shape[-1] in (2, 4)


@torch.no_grad()  # RT-DETR trains what its encoder proposes by the encoder's own loss alone
def queries_at(boxes: Tensor, detector: Detector, output: DetectorOutput, own_boxes: bool = False) -> Queries:
    """Queries (B, M, ...) at boxes (B, M, 4) as an RT-DETR's encoder would have chosen them, out of its answer to a batch.

    own_boxes: not these boxes, but those that the encoder itself proposes where they are.
    """
    family, model, levels = detector.family, detector.model, levels_of(boxes, len(output.features))
    content = family.content_of(model, sample(output.features, boxes, levels))
    if own_boxes:
        sides = (FINEST_SIDE * 2.0**levels)[..., None].expand(-1, -1, 2)
        boxes = family.proposed_boxes(model, content, torch.cat([boxes[..., :2], sides], -1))
    return Queries(content=content, reference=boxes)


def levels_of(boxes: Tensor, count: int) -> Tensor:
    """(B, M, 4) in (cx, cy, w, h) -> (B, M) int64, of `count` levels the one where RT-DETR proposes boxes of that size."""
    return torch.log2(boxes[..., 2:].amax(-1) / FINEST_SIDE).round().clamp(0, count - 1).long()


def sample(features: list[Tensor], boxes: Tensor, levels: Tensor) -> Tensor:
    """(B, D, h, w) a level, finest first, boxes (B, M, 4) in (cx, cy, w, h), their levels (B, M) -> (B, M, D).

    The features at the boxes' centres.
    """
    at = 2 * boxes[:, :, None, :2] - 1  # grid_sample's coordinates run from -1 to 1
    found = [F.grid_sample(level, at.to(level), align_corners=False)[..., 0].mT for level in features]
    return torch.stack(found).gather(0, levels[None, ..., None].expand(1, -1, -1, found[0].shape[-1]))[0]
