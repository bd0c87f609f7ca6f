"""Pairwise and elementwise box measures on (cx, cy, w, h) boxes, on top of torchvision.ops."""

import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou


def to_corners(boxes: Tensor) -> Tensor:
    """(..., 4) from (cx, cy, w, h) to (x0, y0, x1, y1)."""
    return box_convert(boxes, "cxcywh", "xyxy")


def pairwise_l1(a: Tensor, b: Tensor) -> Tensor:
    """(n, 4), (m, 4) -> (n, m) sums of absolute coordinate differences."""
    return torch.cdist(a, b, p=1)


def pairwise_giou(a: Tensor, b: Tensor) -> Tensor:
    """(n, 4), (m, 4) in (cx, cy, w, h) -> (n, m) generalised IoU in [-1, 1]."""
    return generalized_box_iou(to_corners(a), to_corners(b))
