"""Auxiliary queries (AQ-DETR, Wang et al., AAAI 2024): more queries to learn from while training, none more afterwards.

A quantized decoder gets few positive queries, one an object. G further groups of N learned queries pass the same decoder over
the same memory, each matched with the objects by itself:

    L = 1/G sum over groups g of L_Hungarian(y, y_S(Q_g))

over all decoder layers. Groups are calls of the decoder of their own: neither the object queries nor other groups see them, and
a saved detector has none of them. Known to us is the paper's abstract; that groups are learned queries with the family's own
initialisation, and their mean, are our reading. Where a family's encoder chooses the queries (RT-DETR, D-FINE), a group learns
boxes, and their content is read from the memory.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from leandetr.detectors.detector import Detector
from leandetr.detectors.query_sets import queries_of
from leandetr.distillation.query_map import queries_at
from leandetr.distillation.term import Term
from leandetr.errors import UserError
from leandetr.losses import SetCriterion
from leandetr.structures import Batch, DetectorOutput, Queries

SIDE = 0.2  # of the boxes that groups of RT-DETR start from, relative to the image


class AuxiliaryQueries(Term):
    """Trains the student on groups of learned queries.

    Args:
        student: decodes the groups; it is not registered here, the distiller has it.
        groups: how many groups, each of as many queries as the student's own.

    Raises:
        UserError: fewer than one group, or a student whose queries cannot be learned.
    """

    name = "auxiliary-queries"
    needs = frozenset()
    detections_suffice = True

    def __init__(self, student: Detector, *, groups: int = 3) -> None:
        super().__init__()
        if groups < 1:
            raise UserError(f"groups of the auxiliary-queries term is {groups}; ask for at least 1")
        self._student = (student,)  # a tuple hides it from the module's parameters
        self.groups = groups
        model, config = student.model, student.config
        table = student.family.learned_queries(model)
        if table is not None:
            like = table.weight[queries_of(config, "object")]
            self.queries = nn.Embedding(groups * len(like), like.shape[1], device=like.device)
            with torch.no_grad():
                model._init_weights(self.queries)
        elif student.family.content_from_memory:
            self.queries = nn.Embedding(groups * config.num_queries, 4, device=student.model.device)
            with torch.no_grad():
                self.queries.weight[:, :2].uniform_().clamp_(0.02, 0.98)
                self.queries.weight[:, 2:] = SIDE
                self.queries.weight.copy_(self.queries.weight.logit())
        else:
            raise UserError(
                f"the auxiliary-queries term cannot add groups to this {config.model_type} student, whose queries are proposed "
                "by its encoder or come in groups or patterns already; take a family with learned queries"
            )
        self.criterion = SetCriterion.from_config(config, student.family.class_loss)

    @classmethod
    def build(cls, student: Detector, teacher: Detector | None, **options: int) -> Self:
        return cls(student, **options)

    def forward(self, student: DetectorOutput, teacher: DetectorOutput | None, batch: Batch) -> dict[str, Tensor]:
        """The student's memory -> "class", "bbox" and "giou" of the groups' set losses, their mean."""
        (detector,) = self._student
        parts: dict[str, list[Tensor]] = {}
        for rows in self.queries.weight.chunk(self.groups):
            answer = detector.decode(self.group(rows, student), student.memory)
            for name, value in self.criterion(answer.logits.float(), answer.boxes.float(), batch["labels"]).items():
                parts.setdefault(name, []).append(value)
        return {name: torch.stack(values).mean() for name, values in parts.items()}

    def group(self, rows: Tensor, student: DetectorOutput) -> Queries:
        """Learned rows (N, ...) and the student's answer -> the decoder's queries (B, N, ...), as the student's model makes
        them of its own table."""
        (detector,) = self._student
        rows = rows.expand(student.logits.shape[1], -1, -1)
        if detector.family.content_from_memory:
            boxes = rows.sigmoid()
            return Queries(content=queries_at(boxes, detector, student).content, reference=boxes)
        return detector.family.queries_of_rows(detector.model, rows, student.queries)
