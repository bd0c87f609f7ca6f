"""Self-distillation of a decoder: its last layer teaches the earlier ones (after GO-LSD, D-FINE, Peng et al., ICLR 2025).

A query is the same in every layer, so that nothing has to be matched. With z and b the logits and boxes of layer l < L and of
the last layer L, which is a constant for the gradient,

    L = sum over layers l < L of  ( sqrt(n+) mean+ + sqrt(n-) mean- ) / ( sqrt(n+) + sqrt(n-) )
    of  omega [ T^2 D(sigmoid(z_L / T) || sigmoid(z_l / T)) + 5 |b_l - b_L|_1 + 2 (1 - GIoU(b_l, b_L)) ]

mean+ and n+ are of the queries that the last layer matches with objects, and omega is their IoU with these; mean- and n- are of
the others, with omega their highest class probability. So nothing is taught before the last layer knows something. D is the
divergence, of sigmoid heads summed over K classes, with T = 2, of softmax heads over K + 1, with T = 1. D-FINE does this with
the distributions of its edges (DDF), which its own loss and DEIMv2's contain already: here are classes and boxes, in every
family. The mix of means is DDF's, the bracket is ours.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torchvision.ops import box_iou

from leandetr.boxes import to_corners
from leandetr.detectors.detector import Detector
from leandetr.distillation.logits import BBOX_WEIGHT, GIOU_WEIGHT, SoftClasses
from leandetr.distillation.term import Term
from leandetr.heads import Head
from leandetr.losses import HungarianMatcher, box_losses, pad_targets
from leandetr.structures import Batch, DetectorOutput

TEMPERATURES = {Head.SIGMOID: 2.0, Head.SOFTMAX: 1.0}


class SelfDistillation(Term):
    """Makes a student's earlier layers answer as its last.

    Args:
        head: the student's.
        matcher: how its queries are matched with the objects.
    """

    name = "self-distillation"
    needs = frozenset()
    detections_suffice = True

    def __init__(self, head: Head, matcher: HungarianMatcher) -> None:
        super().__init__()
        self.head, self.matcher, self.temperature = head, matcher, TEMPERATURES[head]
        self.classes = SoftClasses(head, head)

    @classmethod
    def build(cls, student: Detector, teacher: Detector | None) -> Self:
        return cls(student.head, HungarianMatcher.from_config(student.config, student.head))

    def forward(self, student: DetectorOutput, teacher: DetectorOutput | None, batch: Batch) -> dict[str, Tensor]:
        """The student's layers -> "class" and "box", summed over the layers before the last; 0 of a single layer."""
        logits, boxes = student.logits[:-1].float(), student.boxes[:-1]
        last, place = student.logits[-1].detach().float(), student.boxes[-1].detach()
        targets = self.classes.targets(last / self.temperature).expand(len(logits), -1, -1, -1)
        divergence = self.temperature**2 * self.classes.divergences(logits / self.temperature, targets)
        l1, giou = box_losses(boxes.flatten(0, 2), place.expand(boxes.shape).flatten(0, 2))
        weight = self.weights(last, place, batch)
        return {
            "class": (weight * divergence).sum(),
            "box": (weight * (BBOX_WEIGHT * l1 + GIOU_WEIGHT * giou).view_as(divergence)).sum(),
        }

    @torch.no_grad()
    def weights(self, logits: Tensor, boxes: Tensor, batch: Batch) -> Tensor:
        """The last layer's logits (B, N, C) and boxes (B, N, 4) -> (B, N), omega and its part in the mixed mean."""
        objects = pad_targets(batch["labels"])
        pairs = self.matcher(logits[None], boxes[None], objects)
        found, wanted = to_corners(pairs.of_queries(boxes[None]).float()), to_corners(pairs.of_targets(objects.boxes))
        omega = self.head.probabilities(logits).amax(-1)
        matched = torch.zeros_like(omega, dtype=torch.bool)
        matched[pairs.images, pairs.queries] = True
        omega[pairs.images, pairs.queries] = box_iou(found[:, None], wanted[:, None]).flatten().nan_to_num()
        count = matched.sum()
        rest = omega.numel() - count
        mean = torch.where(matched, 1 / count.clamp(min=1).sqrt(), 1 / rest.clamp(min=1).sqrt())
        return omega * mean / (count.sqrt() + rest.sqrt())
