"""Hungarian-matching logits distillation (DETRDistill, Chang et al., ICCV 2023, section 4.1, eq. 2-4).

The teacher's queries split into positives, which its own assignment matches with an object, and negatives, all the others. They
are matched one to one with the student's queries, at every decoder stage k:

    L = sum_k  1/n_pos sum_positives [ class + 5 * |b_S - b_T|_1 + 2 * (1 - GIoU(b_S, b_T)) ]
             + 1/n_neg sum_negatives [         5 * |b_S - b_T|_1 + 2 * (1 - GIoU(b_S, b_T)) ]

Negatives teach boxes alone, because their class need not be background (footnote 1). The class part compares distributions:
binary cross-entropy between sigmoid heads, KL divergence over K + 1 classes between softmax heads.

The paper matches the two parts apart from each other. Read literally, most queries that are matched with a positive get a
negative's box as well, and are taught two places at once. Here no query has two partners: one matching of all queries by class
and box, as in the authors' published code, or negatives by box among the queries that positives leave.

Where both encoders choose their detector's queries by class, what they say of these cells is stage 0, which the paper's
families do not have: otherwise nothing of the teacher would reach what decides where the student looks.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from leandetr.detectors.detector import Detector
from leandetr.distillation.term import Term
from leandetr.errors import UserError, unknown
from leandetr.heads import Head
from leandetr.losses import Assignment, HungarianMatcher, box_cost, box_losses, mean_over_ranks, pad_targets, solve, to_host
from leandetr.losses.matcher import UNUSABLE, PaddedTargets
from leandetr.structures import Batch, DetectorOutput, Proposals

BBOX_WEIGHT, GIOU_WEIGHT = 5.0, 2.0
STAGES = ("progressive", "last")
MATCHINGS = ("joint", "positives-first")
AHEAD = 1e5  # what a positive costs less than a negative: more than any pair does, far less than `UNUSABLE`


class HungarianLogits(Term):
    """Makes the student's set of predictions like the teacher's. Their numbers of queries and of decoder stages may differ.

    Args:
        student_head: what the columns of its logits mean.
        matcher: how the teacher's queries are matched with the objects; its head is the teacher's.
        stages: "progressive": a teacher's stage teaches the student's stage of the same depth. "last": the teacher's last stage
            teaches all (DETRDistill, table 7).
        matching: "joint": one matching of all queries; where the student has fewer, negatives are left out. "positives-first":
            the positives choose among all of the student's queries, the negatives among the others.
        proposals: whether the encoders' proposals are a stage, where both detectors have them.
        positive_class, positive_box, negative_box: the three parts of table 6.

    Raises:
        UserError: unknown `stages` or `matching`, or all three parts switched off.
    """

    name = "logits"
    needs = frozenset({"logits", "boxes"})

    def __init__(
        self,
        student_head: Head,
        matcher: HungarianMatcher,
        *,
        stages: str = "progressive",
        matching: str = "joint",
        proposals: bool = True,
        positive_class: bool = True,
        positive_box: bool = True,
        negative_box: bool = True,
    ) -> None:
        super().__init__()
        if stages not in STAGES:
            raise unknown("stages of the logits term", stages, STAGES)
        if matching not in MATCHINGS:
            raise unknown("matching of the logits term", matching, MATCHINGS)
        if not (positive_class or positive_box or negative_box):
            raise UserError("positive_class, positive_box and negative_box of the logits term are all off; switch one on")
        self.classes = SoftClasses(student_head, matcher.head)
        self.matcher = matcher
        self.stages, self.matching, self.proposals = stages, matching, proposals
        self.positive_class, self.positive_box, self.negative_box = positive_class, positive_box, negative_box

    @classmethod
    def build(cls, student: Detector, teacher: Detector, **options: Any) -> Self:
        term = cls(student.head, HungarianMatcher.from_config(teacher.config, teacher.head), **options)
        if term.proposals and student.family.proposes_classes and teacher.family.proposes_classes:
            term.needs = term.needs | {"proposals"}
        return term

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """Student (L, B, N, ...), teacher (K, B, M, ...) -> the parts that are switched on, each summed over the L stages."""
        logits, answered = student.logits, student.boxes
        stages = teaching_stages(len(logits), len(teacher.logits)) if self.stages == "progressive" else [-1] * len(logits)
        teacher_logits, teacher_boxes = teacher.logits[stages], teacher.boxes[stages]
        if self.proposals and student.proposals is not None and teacher.proposals is not None:
            own, taught = student.proposals, Proposals(teacher.logits[-1], teacher.boxes[-1])
            taught = teacher.proposals if self.stages == "progressive" else taught
            logits, answered = before(own.logits, logits), before(own.boxes, answered)
            teacher_logits, teacher_boxes = before(taught.logits, teacher_logits), before(taught.boxes, teacher_boxes)
        positives, negatives = self.match(logits, answered, teacher_logits, teacher_boxes, pad_targets(batch["labels"]))

        def boxes(pairs: Assignment) -> Tensor:
            l1, giou = box_losses(pairs.of_queries(answered), teacher_boxes[pairs.layers, pairs.images, pairs.targets])
            return (BBOX_WEIGHT * l1 + GIOU_WEIGHT * giou).sum() / count(pairs)

        def count(pairs: Assignment) -> Tensor:  # of one stage: every stage has as many
            return mean_over_ranks(len(pairs.layers) // len(logits), logits.device)

        parts = {}
        if self.positive_class:
            targets = self.classes.targets(teacher_logits[positives.layers, positives.images, positives.targets])
            losses = self.classes.losses(positives.of_queries(logits), targets)
            parts["positive_class"] = losses.sum() / count(positives)
        if self.positive_box:
            parts["positive_box"] = boxes(positives)
        if self.negative_box:
            parts["negative_box"] = boxes(negatives)
        return parts

    @torch.no_grad()
    def match(
        self, logits: Tensor, boxes: Tensor, teacher_logits: Tensor, teacher_boxes: Tensor, objects: PaddedTargets
    ) -> tuple[Assignment, Assignment]:
        """Student queries for the teacher's positives and for its negatives; targets are teacher queries.

        logits (L, B, N, C) and boxes (L, B, N, 4) are the student's stages, teacher_logits (L, B, M, C) and teacher_boxes
        (L, B, M, 4) hold the teacher's stage for each of them. All
        matchings, the teacher's own among them, share one device-to-host copy.
        """
        own, box_costs, class_costs = to_host(
            self.matcher.cost(teacher_logits, teacher_boxes, objects),
            box_cost(boxes, teacher_boxes, BBOX_WEIGHT, GIOU_WEIGHT),
            self.classes.pairwise_losses(logits, self.classes.targets(teacher_logits)),
        )
        layers, images, queries, _ = solve(own, [[np.arange(size) for size in objects.sizes]] * len(own))
        positive = np.zeros((len(own), len(objects.sizes), own.shape[2]), bool)
        positive[layers, images, queries] = True
        split = (joint if self.matching == "joint" else positives_first)(class_costs + box_costs, box_costs, positive)
        both = torch.from_numpy(np.concatenate(split, axis=1)).to(boxes.device)
        positives, negatives = both.split([part.shape[1] for part in split], dim=1)
        return Assignment(*positives), Assignment(*negatives)


def before(stage: Tensor, stages: Tensor) -> Tensor:
    """(B, ...) and (L, B, ...) -> (L + 1, B, ...)."""
    return torch.cat([stage[None], stages])


def joint(costs: np.ndarray, box_costs: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(L, B, N, M) costs, (L, B, M) bool -> (4, P) pairs with positives and with negatives, of one matching of all."""
    pairs = solve(costs - AHEAD * positive[:, :, None], indices(np.ones_like(positive)))
    layers, images, _, taught = pairs
    of_positives = positive[layers, images, taught]
    return pairs[:, of_positives], pairs[:, ~of_positives]


def positives_first(costs: np.ndarray, box_costs: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `joint`, but the negatives choose after the positives have, and by their boxes alone."""
    positives = solve(costs, indices(positive))
    taken = np.zeros(costs.shape[:3], bool)
    taken[tuple(positives[:3])] = True
    negatives = solve(np.where(taken[..., None], UNUSABLE, box_costs), indices(~positive))
    return positives, negatives[:, ~taken[tuple(negatives[:3])]]


def indices(chosen: np.ndarray) -> list[list[np.ndarray]]:
    """(L, B, M) bool -> the true indices of every layer and image."""
    return [[np.flatnonzero(image) for image in layer] for layer in chosen]


def teaching_stages(student: int, teacher: int) -> list[int]:
    """Which of the teacher's stages teaches each of the student's: even groups, the last of each group teaches (figure 5).

    >>> teaching_stages(3, 6), teaching_stages(6, 6), teaching_stages(6, 3)
    ([1, 3, 5], [0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2])
    """
    return [-(-(stage + 1) * teacher // student) - 1 for stage in range(student)]


class SoftClasses:
    """Loss of a student's class logits against a teacher's class distribution.

    Both sigmoid: sum over K classes of the binary cross-entropy. Both softmax: KL(teacher || student) over K + 1 classes.
    Mixed: binary cross-entropy between the K class probabilities; a softmax head's are taken without its no-object column.

    Args:
        student_head, teacher_head: what the columns of their logits mean.
    """

    def __init__(self, student_head: Head, teacher_head: Head) -> None:
        self.student_head, self.teacher_head = student_head, teacher_head
        self.exclusive = student_head.has_no_object and teacher_head.has_no_object

    def targets(self, teacher_logits: Tensor) -> Tensor:
        """(..., C_T) -> (..., C), the teacher's probabilities of the classes that are compared."""
        logits = teacher_logits.float()
        return self.teacher_head.distribution(logits) if self.exclusive else self.teacher_head.probabilities(logits)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(P, C_S), (P, C) -> (P,)."""
        log_yes, log_no = self._log_probabilities(logits)
        if log_no is None:
            return (torch.special.xlogy(targets, targets) - targets * log_yes).sum(-1)
        return -(targets * log_yes + (1 - targets) * log_no).sum(-1)

    def divergences(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(P, C_S), (P, C) -> (P,), the losses less what they are where the student says just the same: KL(teacher || student),
        summed over the K yes-or-no distributions where it is not over K + 1 classes."""
        losses = self.losses(logits, targets)
        if self.exclusive:
            return losses
        return losses + (torch.special.xlogy(targets, targets) + torch.special.xlogy(1 - targets, 1 - targets)).sum(-1)

    @torch.no_grad()
    def pairwise_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(..., N, C_S), (..., M, C) -> (..., N, M)."""
        with torch.autocast(logits.device.type, enabled=False):
            log_yes, log_no = self._log_probabilities(logits)
            if log_no is None:
                return torch.special.xlogy(targets, targets).sum(-1)[..., None, :] - log_yes @ targets.mT
            return -(log_yes @ targets.mT) - log_no @ (1 - targets).mT

    def _log_probabilities(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logarithms of the probability of each compared class and of its absence (None where classes exclude each other)."""
        logits = logits.float()
        if not self.student_head.has_no_object:
            return F.logsigmoid(logits), F.logsigmoid(-logits)
        log_yes = logits.log_softmax(-1)
        if self.exclusive:
            return log_yes, None
        log_yes = log_yes[..., :-1]
        return log_yes, torch.log1p(-log_yes.exp().clamp(max=1 - 1e-6))
