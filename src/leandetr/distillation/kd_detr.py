"""Consistent distillation points (KD-DETR, Wang et al., CVPR 2024).

The same queries are given to the teacher's decoder and, as groups of their own, to the student's. So their answers belong
together one to one, and no matching comes between them:

    general points   drawn anew in every step, to ask the teacher where neither detector would look
    specific points  the teacher's own queries, to ask what it knows

For every group and every decoder layer of the student, against the teacher's last layer,

    L = 1 / sum_i w_i * sum_i w_i [ T^2 mean_c KL(softmax(z_T / T) || softmax(z_S / T)) + 5 mean |b_S - b_T| + 2 (1 - GIoU) ]

with T = 10, and w_i, the foreground re-weighting, the teacher's highest class probability for query i.

Drawn are reference points as sigmoids of unit normals; and, for families that learn a query's content or position, these too,
with the mean and the deviation that every channel has among the teacher's queries.
"""

from __future__ import annotations

from typing import Self, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from leandetr.detectors.detector import Detector
from leandetr.distillation.query_map import QueryMap, queries_at
from leandetr.distillation.teacher import DetectorTeacher
from leandetr.distillation.term import Term
from leandetr.errors import UserError
from leandetr.losses import box_losses
from leandetr.structures import Batch, DetectorOutput, Queries

BBOX_WEIGHT, GIOU_WEIGHT = 5.0, 2.0
TEMPERATURE = 10.0


class DistillationPoints(Term):
    """Asks student and teacher the same questions.

    Args:
        student: answers; it is not registered here, the distiller has it.
        teacher: answers too.
        queries: brings the teacher's queries to the student.
        general, specific: which points are asked. There are as many of each as the teacher has queries.
        foreground: whether points count as much as the teacher sees an object there, or all alike.

    Raises:
        UserError: neither general nor specific points.
    """

    name = "kd-detr"
    needs = frozenset({"logits", "boxes", "queries", "memory"})

    def __init__(
        self,
        student: Detector,
        teacher: DetectorTeacher,
        queries: QueryMap,
        *,
        general: bool = True,
        specific: bool = True,
        foreground: bool = True,
    ) -> None:
        super().__init__()
        if not (general or specific):
            raise UserError("general and specific of the kd-detr term are both off; switch one on")
        self.queries = queries
        self._student, self._teacher = (student,), (teacher,)  # tuples hide them from the module's parameters
        self.general, self.specific, self.foreground = general, specific, foreground
        if not general:
            self.needs = self.needs - {"memory"}

    @classmethod
    def build(cls, student: Detector, teacher: Detector, **options: bool) -> Self:
        """Raises UserError where the two detectors mean different things by a query."""
        return cls(student, DetectorTeacher(teacher, student), QueryMap.build(cls.name, student, teacher), **options)

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """Memories and queries of both -> "class" and "box" of "general_" and "specific_" points, summed over the layers."""
        (detector,), (guide,) = self._student, self._teacher
        asked: dict[str, tuple[Queries, DetectorOutput]] = {}
        if self.general:
            points = draw(teacher.queries)
            from_memory = guide.detector.family.content_from_memory
            theirs = queries_at(cast(Tensor, points.reference), guide.detector, teacher) if from_memory else points
            asked["general"] = points, guide.decode(theirs, teacher.memory)
        if self.specific:
            asked["specific"] = teacher.queries, teacher
        parts: dict[str, Tensor] = {}
        for name, (points, taught) in asked.items():
            answer = detector.decode(self.queries(points, student), student.memory)
            parts |= {f"{name}_{part}": value for part, value in self.losses(answer, taught).items()}
        return parts

    def losses(self, student: DetectorOutput, teacher: DetectorOutput) -> dict[str, Tensor]:
        """The student's layers (L, B, M, ...) and the teacher's last, for the same points -> "class" and "box"."""
        logits, boxes = teacher.logits[-1], teacher.boxes[-1]
        (guide,) = self._teacher
        scores = guide.detector.head.probabilities(logits.float())
        weights = scores.amax(-1) if self.foreground else torch.ones_like(logits[..., 0])
        weights = weights / weights.sum().clamp(min=1e-6)
        wanted = logits.expand(student.logits.shape), boxes.expand(student.boxes.shape)
        divergence, box = differences(student.logits, student.boxes, *wanted)
        return {"class": (weights * divergence).sum(), "box": (weights * box).sum()}


def differences(logits: Tensor, boxes: Tensor, taught_logits: Tensor, taught_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """A student's and a teacher's answers to the same queries, logits (..., C) and boxes (..., 4) of each -> the two parts of
    the bracket, (...) each."""
    wanted = (taught_logits.float() / TEMPERATURE).softmax(-1)
    given = (logits.float() / TEMPERATURE).log_softmax(-1)
    divergence = TEMPERATURE**2 * F.kl_div(given, wanted, reduction="none").mean(-1)
    l1, giou = box_losses(boxes.flatten(0, -2), taught_boxes.flatten(0, -2))
    return divergence, (BBOX_WEIGHT * l1 / 4 + GIOU_WEIGHT * giou).view_as(divergence)


def draw(queries: Queries) -> Queries:
    """Random queries of the same shapes, on the same device."""

    def alike(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        values = values.float()
        return values.mean((0, 1)) + values.std((0, 1), correction=0) * torch.randn_like(values)

    reference = None if queries.reference is None else torch.randn_like(queries.reference.float()).sigmoid()
    return Queries(content=alike(queries.content), position=alike(queries.position), reference=reference)
