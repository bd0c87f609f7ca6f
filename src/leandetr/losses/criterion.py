"""The set loss of detection transformers, for query groups that the family's own loss in transformers does not know.

    L = sum over layers of  w_class * L_class + w_bbox * |b - b_gt|_1 + w_giou * (1 - GIoU(b, b_gt))

Classes: for softmax heads cross-entropy over K + 1 classes, in which no-object counts a tenth because nearly all queries find
nothing (DETR); for sigmoid heads the family's own loss, see `class_losses.py`. Boxes: sums over the matched pairs. All but
cross-entropy, a weighted mean, are divided by the number of objects, averaged over the processes.

Given a family's main queries, this is what transformers trains them with. Only the losses on the distributions of D-FINE's and
DEIMv2's distances (FGL and DDF) are left out: transformers 5.24 itself weighs a layer's distributions by the boxes of the one
before and gives the last layer none, so that there is nothing sound for a group to agree with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.nn import functional as F
from torchvision.ops import box_iou
from transformers import PreTrainedConfig

from leandetr.boxes import pairwise_giou, to_corners
from leandetr.heads import ClassLoss
from leandetr.losses.class_losses import SIGMOID_LOSSES
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


def at_every_layer(assignment: Assignment, layers: int) -> Assignment:
    """The pairs of a single layer, for each of `layers` layers."""
    pairs = len(assignment.layers)
    repeated = torch.arange(layers, device=assignment.layers.device).repeat_interleave(pairs)
    return Assignment(repeated, *(index.repeat(layers) for index in assignment[1:]))


def united(assignment: Assignment) -> Assignment:
    """The pairs of all layers as pairs of one (DEIM's dense one-to-one matching): every query that a layer has matched, with
    the object that most layers give it. An object may have several queries."""
    places = torch.stack(assignment[1:], dim=1).cpu()
    pairs: dict[tuple[int, int], int] = {}
    for image in places[:, 0].unique():
        found, counts = torch.unique(places[places[:, 0] == image], dim=0, return_counts=True)
        for _, query, target in found[counts.argsort(descending=True)].tolist():
            pairs.setdefault((int(image), query), target)
    rows = [(0, image, query, target) for (image, query), target in pairs.items()]
    return Assignment(*torch.tensor(rows, dtype=torch.int64).view(-1, 4).T.to(assignment.layers.device))


@dataclass(frozen=True)
class SetCriterion:
    """Set loss over all decoder layers, with a given assignment or its own.

    Args:
        matcher: finds the assignment where none is given.
        class_loss: the family's, of the same kind of head as the matcher's.
        class_weight, bbox_weight, giou_weight: weights of the three parts.
        no_object_weight: weight of the no-object class in the cross-entropy.
        alpha, gamma: of the sigmoid heads' loss.
        dense: boxes learn from the pairs that `united` makes of those it finds (DEIMv2).
    """

    matcher: HungarianMatcher
    class_loss: ClassLoss
    class_weight: float = 1.0
    bbox_weight: float = 5.0
    giou_weight: float = 2.0
    no_object_weight: float = 0.1
    alpha: float = 0.25
    gamma: float = 2.0
    dense: bool = False

    @classmethod
    def from_config(cls, config: PreTrainedConfig, class_loss: ClassLoss) -> SetCriterion:
        """With the weights of the family's own loss: a group of queries is weighted as the main queries are.

        transformers' loss weights the classes of Conditional and DAB-DETR with 1 and never reads their
        `cls_loss_coefficient`.
        """

        def first(default: float, *names: str) -> float:
            return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), default)

        matchability = class_loss is ClassLoss.MATCHABILITY_AWARE
        return cls(
            matcher=HungarianMatcher.from_config(config, class_loss.head),
            class_loss=class_loss,
            class_weight=first(1.0, "class_loss_coefficient", "weight_loss_mal", "weight_loss_vfl"),
            bbox_weight=first(5.0, "bbox_loss_coefficient", "weight_loss_bbox"),
            giou_weight=first(2.0, "giou_loss_coefficient", "weight_loss_giou"),
            no_object_weight=first(0.1, "eos_coefficient"),
            alpha=first(1.0, "mal_alpha") if matchability else first(0.25, "focal_loss_alpha", "focal_alpha"),
            gamma=first(2.0, "focal_loss_gamma"),
            dense=getattr(config, "use_dense_one_to_one", False),
        )

    def __call__(
        self, logits: Tensor, boxes: Tensor, labels: Sequence[Objects], assignment: Assignment | None = None
    ) -> dict[str, Tensor]:
        """logits (L, B, N, C), boxes (L, B, N, 4), the objects of the B images -> weighted "class", "bbox" and "giou" scalars.

        assignment: which query answers for which object; found by the matcher where it is not given.
        """
        targets = pad_targets(labels)
        if self.class_loss in (ClassLoss.VARIFOCAL, ClassLoss.MATCHABILITY_AWARE):  # D-FINE's may reach out of the image
            boxes = boxes.clamp(0, 1)
        count = mean_over_ranks(sum(targets.sizes), logits.device)
        boxes_count = count
        if assignment is not None:
            of_boxes = assignment
        else:
            assignment = of_boxes = self.matcher(logits, boxes, targets)
            if self.dense:
                of_boxes = at_every_layer(united(assignment), len(boxes))
                boxes_count = mean_over_ranks(len(of_boxes.layers) // len(boxes), logits.device)
        l1, giou = box_losses(of_boxes.of_queries(boxes), of_boxes.of_targets(targets.boxes))
        return {
            "class": self.class_weight * self.classes(logits.float(), boxes, targets, assignment, count),
            "bbox": self.bbox_weight * l1.sum() / boxes_count,
            "giou": self.giou_weight * giou.sum() / boxes_count,
        }

    def classes(self, logits: Tensor, boxes: Tensor, targets: PaddedTargets, assignment: Assignment, count: Tensor) -> Tensor:
        """(L, B, N, C) logits, (L, B, N, 4) boxes -> scalar."""
        layers, images, queries, _ = assignment
        classes = assignment.of_targets(targets.classes)
        if self.class_loss is not ClassLoss.CROSS_ENTROPY:
            found = to_corners(assignment.of_queries(boxes).detach().float())
            overlaps = box_iou(found[:, None], to_corners(assignment.of_targets(targets.boxes))[:, None]).flatten()
            loss = SIGMOID_LOSSES[self.class_loss]
            return loss(logits, (layers, images, queries, classes), overlaps.nan_to_num(), self.alpha, self.gamma) / count
        no_object = logits.shape[-1] - 1
        wanted = torch.full(logits.shape[:-1], no_object, device=logits.device)
        wanted[layers, images, queries] = classes
        weight = torch.ones(no_object + 1, device=logits.device)
        weight[no_object] = self.no_object_weight
        losses = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), weight, reduction="none").view(len(logits), -1)
        return (losses.sum(1) / weight[wanted].flatten(1).sum(1)).sum()
