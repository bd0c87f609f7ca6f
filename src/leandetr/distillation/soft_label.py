"""Distillation queries with soft labels: what SwinDETR leaves to future work, in place of its hard labels.

The distillation queries (see `hard_label`) learn whole distributions from the teacher's last layer. Of its queries the N_d most
confident are matched with the N_d distillation queries, at every decoder layer anew, by the cost of `logits`. Over the pairs
(i, j) of a teacher's and a student's query,

    soft-class   L = 1 / sum_i w_i * sum w_i KL(p_i || p_j)               p: the class distribution
    soft-box     L = 1 / sum_i w_i * sum w_i ln(1 + KL(b_i || b_j))       b: the box as a distribution

with w_i the teacher's highest class probability, as in KD-DETR: what it takes for background teaches little.

A box is a Gaussian on each axis, its centre the mean and half its side the deviation (Yang et al., Learning High-Precision
Bounding Box for Rotated Object Detection via Kullback-Leibler Divergence, NeurIPS 2021, for boxes without rotation; the
logarithm, which keeps early gradients small, is theirs too). With r = sigma_i / sigma_j and d = (mu_i - mu_j) / sigma_j,

    KL(b_i || b_j) = sum over x and y of (r^2 + d^2 - 1) / 2 - ln r

A shift counts relative to the box's size, and every family has such boxes, with integral heads or without.
"""

from __future__ import annotations

from typing import NamedTuple, Self, cast

import numpy as np
import torch
from torch import Tensor

from leandetr.detectors.detector import Detector
from leandetr.detectors.query_sets import add_distillation_queries
from leandetr.distillation.logits import BBOX_WEIGHT, GIOU_WEIGHT, SoftClasses
from leandetr.distillation.term import Term
from leandetr.heads import Head
from leandetr.losses import Assignment, box_cost, mean_over_ranks, solve, to_host
from leandetr.structures import Batch, DetectorOutput

NARROWEST = 1e-6  # side of a box, relative to the image, below which its Gaussian would be none


class Labels(NamedTuple):
    """The teacher's n most confident queries: class probabilities (B, n, C), boxes (B, n, 4) and weights (B, n) in [0, 1]."""

    classes: Tensor
    boxes: Tensor
    weights: Tensor


class SoftLabel(Term):
    """What the two terms share: the teacher's queries and their partners.

    Args:
        student: the detector to train, after `prepare`.
        teacher_head: what the columns of its logits mean.
    """

    needs = frozenset({"logits", "boxes"})
    detection = 0.5

    def __init__(self, student: Detector, teacher_head: Head) -> None:
        super().__init__()
        self.classes = SoftClasses(student.head, teacher_head)
        self.teacher_head = teacher_head

    @classmethod
    def build(cls, student: Detector, teacher: Detector) -> Self:
        return cls(student, teacher.head)

    @classmethod
    def prepare(cls, student: Detector, *, queries: int | None = None) -> None:
        """Add so many distillation queries; as many as object queries by default."""
        add_distillation_queries(student.model, queries)

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """The distillation queries' layers (L, B, N_d, ...), the teacher's last (B, M, ...) -> {"kl": summed over layers}."""
        answers = cast(DetectorOutput, student.distillation)  # after `prepare`
        labels = self.labels(teacher, answers.logits.shape[2])
        pairs = self.match(answers, labels)
        losses = pairs.of_targets(labels.weights) * self.divergences(answers, labels, pairs)
        return {"kl": losses.sum() / mean_over_ranks(labels.weights.sum(), losses.device)}

    def divergences(self, answers: DetectorOutput, labels: Labels, pairs: Assignment) -> Tensor:
        """(P,), how far each pair's distributions are apart."""
        raise NotImplementedError

    @torch.no_grad()
    def labels(self, teacher: DetectorOutput, count: int) -> Labels:
        """Of the teacher's last layer; all M queries where there are fewer than `count`."""
        logits, boxes = teacher.logits[-1], teacher.boxes[-1]
        scores = self.teacher_head.probabilities(logits.float()).amax(-1)
        weights, chosen = scores.topk(min(count, scores.shape[1]), dim=1)
        logits, boxes = (values.gather(1, chosen[..., None].expand(-1, -1, values.shape[-1])) for values in (logits, boxes))
        return Labels(self.classes.targets(logits), boxes.float(), weights)

    @torch.no_grad()
    def match(self, answers: DetectorOutput, labels: Labels) -> Assignment:
        """Distillation queries for the labels, which are the targets, in every layer."""
        by_class = self.classes.pairwise_losses(answers.logits, labels.classes)
        (cost,) = to_host(by_class + box_cost(answers.boxes, labels.boxes, BBOX_WEIGHT, GIOU_WEIGHT))
        layers, images, _, count = cost.shape
        found = solve(cost, [[np.arange(count)] * images] * layers)
        return Assignment(*torch.from_numpy(found).to(answers.boxes.device))


class SoftClass(SoftLabel):
    """Class distributions: over K + 1 classes between softmax heads, else one of yes and no for each of the K classes."""

    name = "soft-class"

    def divergences(self, answers: DetectorOutput, labels: Labels, pairs: Assignment) -> Tensor:
        return self.classes.divergences(pairs.of_queries(answers.logits), pairs.of_targets(labels.classes))


class SoftBox(SoftLabel):
    """Boxes as Gaussians."""

    name = "soft-box"

    def divergences(self, answers: DetectorOutput, labels: Labels, pairs: Assignment) -> Tensor:
        return torch.log1p(gaussian_divergence(pairs.of_targets(labels.boxes), pairs.of_queries(answers.boxes)))


def gaussian_divergence(boxes: Tensor, others: Tensor) -> Tensor:
    """KL(boxes || others) of boxes (P, 4) as Gaussians, both (cx, cy, w, h) -> (P,), at least 0."""
    (centres, sides), (other_centres, other_sides) = (both.float().split(2, dim=-1) for both in (boxes, others))
    sides, other_sides = sides.clamp(min=NARROWEST), other_sides.clamp(min=NARROWEST)
    ratio, shift = sides / other_sides, 2 * (centres - other_centres) / other_sides
    return ((ratio.square() + shift.square() - 1) / 2 - ratio.log()).sum(-1).clamp(min=0)
