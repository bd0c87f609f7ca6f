"""Query-prior assignment distillation (DETRDistill, Chang et al., ICCV 2023, section 4.3, eq. 9).

A trained teacher's queries find the same objects at every decoder stage, a young student's do not. The teacher's queries Q_T
therefore enter the student's decoder as one more group, and the group's detection loss uses the teacher's assignment sigma_T
instead of a new one:

    L = sum over stages of L_match(y, y_S(Q_T) ordered by sigma_T)

The group is another call of the decoder over the same memory: the student's own queries do not see it, and inference does
without. Where the paper is silent: the assignment of the teacher's last stage supervises every stage of the group. Where the
encoder chooses the queries, a teacher's query is a box, and its content the student's memory there; but inference starts from
the student's proposals, never from a teacher's box. `boxes="student"` takes the student's proposals at the teacher's places.
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor

from leandetr.detectors.detector import Detector
from leandetr.distillation.query_map import QueryMap
from leandetr.distillation.term import Term
from leandetr.errors import UserError, unknown
from leandetr.losses import HungarianMatcher, SetCriterion, at_every_layer, pad_targets
from leandetr.structures import Batch, DetectorOutput

BOXES = ("teacher", "student")


class QueryPriorAssignment(Term):
    """Trains the student's decoder on the teacher's queries with the teacher's assignment.

    Args:
        student: decodes the group; it is not registered here, the distiller has it.
        queries: brings the teacher's queries to the student.
        matcher: how the teacher's queries are matched with the objects.
        rematch: let the group find its own assignment at every stage instead (what the released code does).
        boxes: where the encoder chooses the queries, the "teacher"'s boxes, or those that the "student" proposes there.

    Raises:
        UserError: unknown `boxes`, or the student's of a student that proposes none.
    """

    name = "assignment"
    needs = frozenset({"logits", "boxes", "queries"})

    def __init__(
        self,
        student: Detector,
        queries: QueryMap,
        matcher: HungarianMatcher,
        *,
        rematch: bool = False,
        boxes: str = "teacher",
    ) -> None:
        super().__init__()
        if boxes not in BOXES:
            raise unknown("boxes of the assignment term", boxes, BOXES)
        if boxes == "student" and not student.family.content_from_memory:
            raise UserError(
                f"boxes of the assignment term is student, and this {student.config.model_type} student proposes none for the "
                "teacher's queries; leave boxes out"
            )
        self.queries = queries
        self._student = (student,)  # a tuple hides it from the module's parameters
        self.matcher = matcher
        self.criterion = SetCriterion.from_config(student.config, student.family.class_loss)
        self.rematch, self.boxes = rematch, boxes

    @classmethod
    def build(cls, student: Detector, teacher: Detector, **options: Any) -> Self:
        """Raises UserError where the two detectors mean different things by a query."""
        matcher = HungarianMatcher.from_config(teacher.config, teacher.head)
        return cls(student, QueryMap.build(cls.name, student, teacher), matcher, **options)

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """The student's memory, the teacher's queries and predictions -> "class", "bbox" and "giou" of the group's set loss."""
        (detector,) = self._student
        group = detector.decode(self.queries(teacher.queries, student, self.boxes == "student"), student.memory)
        assignment = None
        if not self.rematch:
            objects = pad_targets(batch["labels"])
            last = self.matcher(teacher.logits[-1:], teacher.boxes[-1:], objects)
            assignment = at_every_layer(last, len(group.logits))
        return self.criterion(group.logits, group.boxes, batch["labels"], assignment)
