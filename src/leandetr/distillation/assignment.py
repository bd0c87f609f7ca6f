"""Query-prior assignment distillation (DETRDistill, Chang et al., ICCV 2023, section 4.3, eq. 9).

A trained teacher's queries find the same objects at every decoder stage, a young student's do not. The teacher's queries Q_T
therefore enter the student's decoder as one more group, and the group's detection loss uses the teacher's assignment sigma_T
instead of a new one:

    L = sum over stages of L_match(y, y_S(Q_T) ordered by sigma_T)

The group is another call of the decoder over the same memory: the student's own queries do not see it, and inference does
without. Where the paper is silent: the assignment of the teacher's last stage supervises every stage of the group. Where the
encoder chooses the queries (RT-DETR), the group is the teacher's boxes with the student's own memory as content.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leandetr.detectors.detector import Detector
from leandetr.distillation.levels import width_of
from leandetr.distillation.term import Term
from leandetr.errors import UserError
from leandetr.losses import Assignment, HungarianMatcher, SetCriterion, pad_targets
from leandetr.structures import Batch, DetectorOutput, Queries

# The side, relative to the image, of the boxes that RT-DETR's encoder proposes on its finest level; each level doubles it.
FINEST_SIDE = 0.05


class QueryPriorAssignment(Term):
    """Trains the student's decoder on the teacher's queries with the teacher's assignment.

    Args:
        student: decodes the group; it is not registered here, the distiller has it.
        teacher_width: channels of the teacher's queries; a linear map brings them to the student's where they differ.
        matcher: how the teacher's queries are matched with the objects.
        rematch: let the group find its own assignment at every stage instead (what the released code does).
    """

    name = "assignment"
    needs = frozenset({"logits", "boxes", "queries"})

    def __init__(self, student: Detector, teacher_width: int, matcher: HungarianMatcher, *, rematch: bool = False) -> None:
        super().__init__()
        width = width_of(student)
        same = width == teacher_width or student.family.queries_from_encoder
        self.adapter = nn.Identity() if same else nn.Linear(teacher_width, width, bias=False)
        self._student = (student,)  # a tuple hides it from the module's parameters
        self.matcher = matcher
        self.criterion = SetCriterion.from_config(student.config, student.head)
        self.rematch = rematch

    @classmethod
    def build(cls, student: Detector, teacher: Detector, **options: bool) -> Self:
        """Raises UserError where the two detectors mean different things by a query."""
        two_stage = any(getattr(detector.config, "two_stage", False) for detector in (student, teacher))
        if type(student.family) is not type(teacher.family) or two_stage:
            raise UserError(
                f"the assignment term cannot give a {teacher.config.model_type} teacher's queries to this "
                f"{student.config.model_type} student, whose queries mean something else; take a teacher of the same family "
                "that is not two-stage, or the methods logits,features"
            )
        return cls(student, width_of(teacher), HungarianMatcher.from_config(teacher.config, teacher.head), **options)

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """The student's memory, the teacher's queries and predictions -> "class", "bbox" and "giou" of the group's set loss."""
        (detector,) = self._student
        group = detector.decode(self.group(student, teacher.queries), student.memory)
        assignment = None
        if not self.rematch:
            objects = pad_targets(batch["labels"])
            last = self.matcher(teacher.logits[-1:], teacher.boxes[-1:], objects)
            assignment = at_every_stage(last, len(group.logits))
        return self.criterion(group.logits, group.boxes, batch["labels"], assignment)

    def group(self, student: DetectorOutput, queries: Queries) -> Queries:
        """The teacher's M queries as the student's decoder takes them: (B, M, D_S), references unchanged."""
        (detector,) = self._student
        if detector.family.queries_from_encoder:
            with torch.no_grad():  # RT-DETR trains what its encoder proposes by the encoder's own loss alone
                content = detector.model.model.enc_output(sample(student.features, queries.reference.float()))
            return Queries(content=content, reference=queries.reference.float())
        mapped = {name: getattr(queries, name) for name in ("content", "position")}
        mapped = {name: None if value is None else self.adapter(value.float()) for name, value in mapped.items()}
        return Queries(**mapped, reference=None if queries.reference is None else queries.reference.float())


def at_every_stage(assignment: Assignment, stages: int) -> Assignment:
    """The pairs of a single layer, for each of `stages` layers."""
    pairs = len(assignment.layers)
    layers = torch.arange(stages, device=assignment.layers.device).repeat_interleave(pairs)
    return Assignment(layers, *(index.repeat(stages) for index in assignment[1:]))


def sample(features: list[Tensor], boxes: Tensor) -> Tensor:
    """(B, D, h, w) a level, finest first, and boxes (B, M, 4) in (cx, cy, w, h) -> (B, M, D).

    The features at the boxes' centres, from the level where RT-DETR's encoder would propose boxes of that size.
    """
    at = 2 * boxes[:, :, None, :2] - 1  # grid_sample's coordinates run from -1 to 1
    found = [F.grid_sample(level, at.to(level), align_corners=False)[..., 0].mT for level in features]
    wanted = torch.log2(boxes[..., 2:].amax(-1) / FINEST_SIDE).round().clamp(0, len(features) - 1).long()
    return torch.stack(found).gather(0, wanted[None, ..., None].expand(1, -1, -1, found[0].shape[-1]))[0]
