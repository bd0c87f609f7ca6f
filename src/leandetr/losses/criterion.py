"""The set loss of detection transformers, for query groups that the family's own loss in transformers does not know.

    L = sum over layers of  w_class * L_class + w_bbox * |b - b_gt|_1 + w_giou * (1 - GIoU(b, b_gt))

Classes: for softmax heads cross-entropy over K + 1 classes, in which no-object counts a tenth because nearly all queries find
nothing (DETR); for sigmoid heads the focal loss (Deformable DETR). Boxes: sums over the matched pairs. All but cross-entropy, a
weighted mean, are divided by the number of objects, averaged over the processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss
from transformers import PreTrainedConfig

from leandetr.boxes import pairwise_giou
from leandetr.heads import Head
from leandetr.losses.matcher import Assignment, HungarianMatcher, PaddedTargets, pad_targets
from leandetr.structures import Objects

# A narrower box has no area in single precision, and then a GIoU of 0 / 0. A hundredth of a pixel in the largest image.
NARROWEST = 1e-6


def mean_over_ranks(count: int | Tensor, device: torch.device) -> Tensor:
    """A count, or a sum of weights, averaged over the processes of a distributed run, at least 1: a scalar on `device`."""
    mean = torch.as_tensor(count, dtype=torch.float32, device=device).detach().clone()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(mean)
        mean = mean / distributed.get_world_size()
    return mean.clamp(min=1.0)


def box_losses(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(P, 4), (P, 4) in (cx, cy, w, h) -> (P,) L1 distances and (P,) 1 - GIoU in [0, 2]."""
    boxes, targets = boxes.float(), targets.float()
    wide = [torch.cat([box[:, :2], box[:, 2:].clamp(min=NARROWEST)], -1)[:, None] for box in (boxes, targets)]
    return (boxes - targets).abs().sum(-1), 1 - pairwise_giou(*wide).flatten()


@dataclass(frozen=True)
class SetCriterion:
    """Set loss over all decoder layers, with a given assignment or its own.

    Args:
        matcher: finds the assignment where none is given; its head chooses the class loss.
        class_weight, bbox_weight, giou_weight: weights of the three parts.
        no_object_weight: weight of the no-object class in the cross-entropy.
        alpha, gamma: of the focal loss.
    """

    matcher: HungarianMatcher
    class_weight: float = 1.0
    bbox_weight: float = 5.0
    giou_weight: float = 2.0
    no_object_weight: float = 0.1
    alpha: float = 0.25
    gamma: float = 2.0

    @classmethod
    def from_config(cls, config: PreTrainedConfig, head: Head) -> SetCriterion:
        """With the weights of the family's own loss: a group of queries is weighted as the main queries are.

        transformers' loss weights the classes of Conditional and DAB-DETR with 1 and never reads their
        `cls_loss_coefficient`.
        """

        def first(default: float, *names: str) -> float:
            return next((getattr(config, name) for name in names if hasattr(config, name)), default)

        return cls(
            matcher=HungarianMatcher.from_config(config, head),
            class_weight=first(1.0, "class_loss_coefficient", "weight_loss_vfl"),
            bbox_weight=first(5.0, "bbox_loss_coefficient", "weight_loss_bbox"),
            giou_weight=first(2.0, "giou_loss_coefficient", "weight_loss_giou"),
            no_object_weight=first(0.1, "eos_coefficient"),
            alpha=first(0.25, "focal_alpha"),
        )

    def __call__(
        self, logits: Tensor, boxes: Tensor, labels: Sequence[Objects], assignment: Assignment | None = None
    ) -> dict[str, Tensor]:
        """logits (L, B, N, C), boxes (L, B, N, 4), the objects of the B images -> weighted "class", "bbox" and "giou" scalars.

        assignment: which query answers for which object; found by the matcher where it is not given.
        """
        targets = pad_targets(labels)
        if assignment is None:
            assignment = self.matcher(logits, boxes, targets)
        count = mean_over_ranks(sum(targets.sizes), logits.device)
        l1, giou = box_losses(assignment.of_queries(boxes), assignment.of_targets(targets.boxes))
        return {
            "class": self.class_weight * self.class_loss(logits.float(), targets, assignment, count),
            "bbox": self.bbox_weight * l1.sum() / count,
            "giou": self.giou_weight * giou.sum() / count,
        }

    def class_loss(self, logits: Tensor, targets: PaddedTargets, assignment: Assignment, count: Tensor) -> Tensor:
        """(L, B, N, C) logits -> scalar."""
        layers, images, queries, _ = assignment
        classes = assignment.of_targets(targets.classes)
        if not self.matcher.head.has_no_object:
            wanted = torch.zeros_like(logits)
            wanted[layers, images, queries, classes] = 1.0
            return sigmoid_focal_loss(logits, wanted, self.alpha, self.gamma, reduction="sum") / count
        no_object = logits.shape[-1] - 1
        wanted = torch.full(logits.shape[:-1], no_object, device=logits.device)
        wanted[layers, images, queries] = classes
        weight = torch.ones(no_object + 1, device=logits.device)
        weight[no_object] = self.no_object_weight
        losses = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), weight, reduction="none").view(len(logits), -1)
        return (losses.sum(1) / weight[wanted].flatten(1).sum(1)).sum()
