"""Target-aware queries (after CLoCKDistill, Lan and Tian, WACV 2026): both decoders are asked about the annotated objects.

One query an object enters both decoders in a call of its own. The answers belong together one to one, and

    L = sum over layers of 1 / sum_i w_i * sum_i w_i [ class + box ]

with KD-DETR's class and box parts, see `kd_detr.py`, the teacher's last layer teaching all, and w_i its highest class
probability.

The paper makes a query of new embeddings of class and box. A trained teacher cannot read such, and answers noise, which the
student would copy. Ours: queries are made for each decoder apart, of inputs that it was trained on, and what they share is the
box:

    RT-DETR, D-FINE, DEIMv2       the memory at the box; its place is the reference
    LW-DETR, RF-DETR, AdaMixer    the mean of the content that it has learned; the box is the reference
    Deformable, two-stage         as it makes queries of its proposals
    DAB-DETR                      the box is the anchor
    others                        places are learned: the teacher's query that its own assignment gives the object

No query says the class: a teacher who is told it answers with the label. Images with fewer objects than others get boxes in the
middle of the image, which count nothing.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from leandetr.detectors.detector import Detector
from leandetr.distillation.kd_detr import differences
from leandetr.distillation.query_map import QueryMap, queries_at
from leandetr.distillation.teacher import DetectorTeacher
from leandetr.distillation.term import Term
from leandetr.errors import UserError
from leandetr.losses import HungarianMatcher, pad_targets
from leandetr.losses.matcher import PaddedTargets
from leandetr.structures import Batch, DetectorOutput, Queries


class TargetQueries(Term):
    """Asks student and teacher about the objects.

    Args:
        student: answers; it is not registered here, the distiller has it.
        teacher: answers too.
        queries: brings a teacher's learned queries to the student; None where queries are made of boxes.
        matcher: how the teacher's queries are matched with the objects.
    """

    name = "target-queries"
    needs = frozenset({"logits", "boxes", "queries", "memory"})

    def __init__(
        self, student: Detector, teacher: DetectorTeacher, queries: QueryMap | None, matcher: HungarianMatcher
    ) -> None:
        super().__init__()
        self._student, self._teacher = (student,), (teacher,)  # tuples hide them from the module's parameters
        self.queries, self.matcher = queries, matcher

    @classmethod
    def build(cls, student: Detector, teacher: Detector) -> Self:
        """Raises UserError for heads of two kinds, and where places are learned and mean different things."""
        if student.head is not teacher.head:
            raise UserError(
                f"the target-queries term compares class distributions of one kind, and a {student.config.model_type} "
                f"student's are not those of a {teacher.config.model_type}; take a teacher of the same family, or the method "
                "located-memory"
            )
        boxes = all(takes_boxes(detector) for detector in (student, teacher))
        queries = None if boxes else QueryMap.build(cls.name, student, teacher)
        matcher = HungarianMatcher.from_config(teacher.config, teacher.head)
        return cls(student, DetectorTeacher(teacher, student), queries, matcher)

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """Memories and queries of both, and the objects -> "class" and "box", summed over the layers; 0 without objects."""
        (detector,), (guide,) = self._student, self._teacher
        objects = pad_targets(batch["labels"])
        if not objects.boxes.shape[1]:
            nothing = 0 * student.boxes.sum()
            return {"class": nothing, "box": nothing}
        if self.queries is None:
            theirs = queries_for(objects.boxes, guide.detector, teacher)
            mine = queries_for(objects.boxes, detector, student)
        else:
            theirs = self.assigned(objects, teacher)
            mine = self.queries(theirs, student)
        taught, answer = guide.decode(theirs, teacher.memory), detector.decode(mine, student.memory)
        logits, boxes = taught.logits[-1], taught.boxes[-1]
        sizes = torch.tensor(objects.sizes, device=boxes.device)
        real = torch.arange(boxes.shape[1], device=boxes.device) < sizes[:, None]
        weights = guide.detector.head.probabilities(logits.float()).amax(-1) * real
        weights = weights / weights.sum().clamp(min=1e-6)
        wanted = logits.expand(answer.logits.shape), boxes.expand(answer.boxes.shape)
        divergence, box = differences(answer.logits, answer.boxes, *wanted)
        return {"class": (weights * divergence).sum(), "box": (weights * box).sum()}

    @torch.no_grad()
    def assigned(self, objects: PaddedTargets, teacher: DetectorOutput) -> Queries:
        """The teacher's queries (B, G, ...) that its last layer matches with the objects; in padding its first."""
        pairs = self.matcher(teacher.logits[-1:], teacher.boxes[-1:], objects)
        chosen = torch.zeros(objects.boxes.shape[:2], dtype=torch.int64, device=objects.boxes.device)
        chosen[pairs.images, pairs.targets] = pairs.queries

        def rows(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.gather(1, chosen[..., None].expand(-1, -1, values.shape[-1]))

        return Queries(*(rows(getattr(teacher.queries, name)) for name in ("content", "position", "reference")))


def takes_boxes(detector: Detector) -> bool:
    """Whether `queries_for` can make its queries."""
    return detector.family.content_from_memory or detector.family.queries_are_boxes


def queries_for(boxes: Tensor, detector: Detector, output: DetectorOutput) -> Queries:
    """Queries (B, G, ...) that ask a detector about boxes (B, G, 4), out of its answer to a batch."""
    if detector.family.content_from_memory:
        return queries_at(boxes, detector, output)
    return detector.family.queries_of_boxes(detector.model, boxes, output.queries)
