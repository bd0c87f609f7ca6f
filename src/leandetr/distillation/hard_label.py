"""Distillation queries with hard labels (SwinDETR, eq. 1; after DeiT's distillation token).

Beside the object queries the decoder has distillation queries. The two sets attend to each other; the object queries learn from
the annotations y, the distillation queries from the teacher's detections with a score over a threshold, by the same loss:

    L = 1/2 L_Hungarian(y, object queries) + 1/2 L_Hungarian(y_teacher, distillation queries)

The first half is the student's own detection loss; the second is the term, with its weight of 1/2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self, cast

import torch
from torch import Tensor
from torchvision.ops import box_convert

from leandetr.detectors.detector import Detector
from leandetr.detectors.postprocess import postprocess
from leandetr.detectors.query_sets import add_distillation_queries
from leandetr.distillation.term import Term
from leandetr.errors import UserError
from leandetr.heads import Head
from leandetr.losses import SetCriterion
from leandetr.structures import Batch, DetectorOutput, Objects


class HardLabel(Term):
    """Trains the student's distillation queries on the teacher's detections.

    Args:
        student: the detector to train, after `prepare`.
        teacher_head: what the columns of its logits mean; None where the detections come with the batch.
        threshold: in [0, 1); only detections with a higher score are labels.

    Raises:
        UserError: a threshold outside [0, 1).
    """

    name = "hard-label"
    needs = frozenset({"logits", "boxes"})
    detection = 0.5
    detections_suffice = True

    def __init__(self, student: Detector, teacher_head: Head | None, *, threshold: float = 0.5) -> None:
        super().__init__()
        if not 0 <= threshold < 1:
            raise UserError(f"threshold of the hard-label term is {threshold}; give a score of at least 0 and below 1")
        self.criterion = SetCriterion.from_config(student.config, student.family.class_loss)
        self.teacher_head, self.threshold = teacher_head, threshold

    @classmethod
    def build(cls, student: Detector, teacher: Detector | None, **options: float) -> Self:
        return cls(student, None if teacher is None else teacher.head, **options)

    @classmethod
    def prepare(cls, student: Detector, *, queries: int | None = None) -> None:
        """Add so many distillation queries; as many as object queries by default."""
        add_distillation_queries(student.model, queries)

    def forward(self, student: DetectorOutput, teacher: DetectorOutput | None, batch: Batch) -> dict[str, Tensor]:
        """The answers of the distillation queries, the teacher's last layer -> "class", "bbox" and "giou" of the set loss."""
        answers = cast(DetectorOutput, student.distillation)  # after `prepare`
        return self.criterion(answers.logits, answers.boxes, self.pseudo_labels(teacher, batch))

    def check(self, answers: Iterable[tuple[DetectorOutput | None, Batch]]) -> None:
        if not any(len(found["boxes"]) for teacher, batch in answers for found in self.pseudo_labels(teacher, batch)):
            raise UserError(
                f"no detection of the teacher on any training image scores above {self.threshold}: the hard-label term has "
                "nothing to learn; lower its threshold or name a better teacher"
            )

    @torch.no_grad()
    def pseudo_labels(self, teacher: DetectorOutput | None, batch: Batch) -> list[Objects]:
        """Every image's detections over the threshold: "class_labels" (n,) and "boxes" (n, 4), (cx, cy, w, h) in [0, 1]."""
        if teacher is None or self.teacher_head is None:
            detections = [target["detections"] for target in batch["labels"]]
        else:
            boxes = teacher.boxes[-1]
            whole = boxes.new_ones(len(boxes), 2)  # detections in units of the image
            detections = [
                {"class_labels": found.labels, "boxes": box_convert(found.boxes, "xyxy", "cxcywh"), "scores": found.scores}
                for found in postprocess(teacher.logits[-1], boxes, self.teacher_head, whole, top_k=boxes.shape[1])
            ]
        over = [found["scores"] > self.threshold for found in detections]
        return [
            Objects(class_labels=found["class_labels"][kept], boxes=found["boxes"][kept])
            for found, kept in zip(detections, over, strict=True)
        ]
