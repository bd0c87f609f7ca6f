"""The class losses of sigmoid heads: what the K logits of matched and unmatched queries should be.

With p = sigmoid(z), u the IoU of a matched query's box with its object's, BCE(z, t) the binary cross-entropy for a target t:

    focal               alpha_t (1 - p_t)^gamma BCE(z, t), t = 1 for the object's class and 0 else       Deformable DETR
    varifocal           u BCE(z, u) for the object's class, alpha p^gamma BCE(z, 0) else                 RT-DETR, D-FINE
    matchability-aware  BCE(z, u^gamma) for the object's class, alpha p^gamma BCE(z, 0) else             DEIM
    iou-aware           BCE(z, p^alpha u^(1 - alpha)) for the object's class, p^gamma BCE(z, 0) else     LW-DETR

Targets, and the weights of varifocal and matchability-aware losses, are constants for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from leandetr.heads import ClassLoss

LEAST_QUALITY = 0.01  # of a target of the IoU-aware loss

#: layers, images, queries and classes of the P matched pairs, each (P,)
Places: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


def focal(logits: Tensor, at: Places, overlaps: Tensor, alpha: float, gamma: float) -> Tensor:
    """The sum over logits (L, B, N, K); `overlaps` (P,) are not looked at."""
    return sigmoid_focal_loss(logits, put(torch.zeros_like(logits), at, 1.0), alpha, gamma, reduction="sum")


def varifocal(logits: Tensor, at: Places, overlaps: Tensor, alpha: float, gamma: float) -> Tensor:
    """The sum over logits (L, B, N, K), with the IoUs (P,) of the matched pairs."""
    wanted = put(torch.zeros_like(logits), at, overlaps)
    weight = put(alpha * logits.detach().sigmoid() ** gamma, at, overlaps)
    return F.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum")


def matchability_aware(logits: Tensor, at: Places, overlaps: Tensor, alpha: float, gamma: float) -> Tensor:
    """The sum over logits (L, B, N, K), with the IoUs (P,) of the matched pairs."""
    wanted = put(torch.zeros_like(logits), at, overlaps**gamma)
    weight = put(alpha * logits.detach().sigmoid() ** gamma, at, 1.0)
    return F.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum")


def iou_aware(logits: Tensor, at: Places, overlaps: Tensor, alpha: float, gamma: float) -> Tensor:
    """The sum over logits (L, B, N, K), with the IoUs (P,) of the matched pairs."""
    scores = logits.sigmoid()
    quality = (scores[at].detach() ** alpha * overlaps ** (1 - alpha)).clamp(min=LEAST_QUALITY)
    yes, no = put(torch.zeros_like(logits), at, quality), put(scores**gamma, at, 1 - quality)
    return -(yes * F.logsigmoid(logits) + no * F.logsigmoid(-logits)).sum()


#: (L, B, N, K) logits, the places of the P pairs, their IoU (P,) in [0, 1], alpha, gamma -> the sum over all logits
SIGMOID_LOSSES: Mapping[ClassLoss, Callable[[Tensor, Places, Tensor, float, float], Tensor]] = {
    ClassLoss.FOCAL: focal,
    ClassLoss.VARIFOCAL: varifocal,
    ClassLoss.MATCHABILITY_AWARE: matchability_aware,
    ClassLoss.IOU_AWARE: iou_aware,
}


def put(values: Tensor, at: Places, found: Tensor | float) -> Tensor:
    """A copy of the values that has `found` at the places."""
    return values.index_put(at, torch.as_tensor(found, dtype=values.dtype, device=values.device))
