"""Hungarian matching of queries with targets (DETR, Carion et al., ECCV 2020, eq. 1).

    C(i, j) = w_class * C_class + w_bbox * |b_i - b_j|_1 - w_giou * GIoU(b_i, b_j)

The cost matrices of all decoder layers and images are computed on the device, leave it in one copy (each further one would make
the device wait once more), and are solved by scipy. `assign` takes any cost; distillation brings its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig

from leandetr.boxes import pairwise_giou, pairwise_l1
from leandetr.heads import Head
from leandetr.structures import Objects

# What a pair that cannot be judged (NaN, infinite) costs. Above every finite cost, yet small enough that the solver's sums in
# double precision still tell the other pairs apart.
UNUSABLE = 1e8
HARD = 32  # rows or columns from which on an assignment takes longer than its preparation
WORTH_THREADS = 100_000  # entries of all matrices


class Assignment(NamedTuple):
    """P matched pairs of all layers and images as four (P,) int64 tensors: query n of image b in layer l has target m."""

    layers: Tensor
    images: Tensor
    queries: Tensor
    targets: Tensor

    def of_queries(self, values: Tensor) -> Tensor:
        """(L, B, N, ...) -> (P, ...), the matched queries' values."""
        return values[self.layers, self.images, self.queries]

    def of_targets(self, values: Tensor) -> Tensor:
        """(B, M, ...) -> (P, ...), the matched targets' values."""
        return values[self.images, self.targets]


class PaddedTargets(NamedTuple):
    """classes (B, M) int64 and boxes (B, M, 4) of the B images, M the largest count; sizes: the B counts, known to the host."""

    classes: Tensor
    boxes: Tensor
    sizes: list[int]


def pad_targets(labels: Sequence[Objects]) -> PaddedTargets:
    """One tensor of a batch's objects. The padding is never matched: every assignment is told the sizes."""
    classes = pad_sequence([target["class_labels"] for target in labels], batch_first=True)
    boxes = pad_sequence([target["boxes"].float() for target in labels], batch_first=True, padding_value=0.5)
    return PaddedTargets(classes, boxes, [len(target["class_labels"]) for target in labels])


@torch.no_grad()
def box_cost(a: Tensor, b: Tensor, bbox_cost: float = 5.0, giou_cost: float = 2.0) -> Tensor:
    """(..., N, 4), (..., M, 4) in (cx, cy, w, h) -> (..., N, M), the box part of the matching cost."""
    a, b = a.float(), b.float()
    return bbox_cost * pairwise_l1(a, b) - giou_cost * pairwise_giou(a, b)


def to_host(*costs: Tensor) -> list[np.ndarray]:
    """Bring cost tensors of one device to the host in a single copy; NaN and infinities become `UNUSABLE`."""
    flat = torch.cat([cost.detach().float().flatten() for cost in costs])
    copied = torch.nan_to_num(flat, UNUSABLE, UNUSABLE, UNUSABLE).cpu()
    return [part.view(cost.shape).numpy() for part, cost in zip(copied.split([cost.numel() for cost in costs]), costs)]


def solve(cost: np.ndarray, columns: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """The cheapest one-to-one assignment within every layer and image.

    Args:
        cost: (L, B, N, M), finite.
        columns: columns[l][b] holds the indices, within M, that may be assigned there.

    Returns:
        (4, P) int64: layer, image, row and column of the pairs, min(N, len(columns[l][b])) for every layer and image.
    """

    def solved(place: tuple[int, int]) -> np.ndarray:
        layer, image = place
        allowed = columns[layer][image]
        rows, chosen = linear_assignment(cost[layer, image][:, allowed])
        return np.stack([np.full_like(rows, layer), np.full_like(rows, image), rows, allowed[chosen]])

    places = [(layer, image) for layer, in_layer in enumerate(columns) for image in range(len(in_layer))]
    threads = min(torch.get_num_threads(), len(places))
    if threads < 2 or cost.size < WORTH_THREADS:
        found = [solved(place) for place in places]
    else:  # scipy's solver lets other threads run meanwhile
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(solved, places))
    return np.concatenate([np.empty((4, 0), np.int64), *found], axis=1)


def linear_assignment(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest one-to-one assignment of (n, m) costs -> min(n, m) rows and their columns, in the order of the rows.

    scipy's shortest augmenting paths are long where many rows want the same column, as they do while detectors are young.
    Where nearly all are assigned anyway, the matrix is made square with indifferent rows or columns; then what a row or a
    column costs as a whole decides nothing, and without it the same solution is found about three times faster.
    """
    rows, columns = cost.shape
    side = max(rows, columns)
    if side < HARD or 2 * min(rows, columns) < side:
        return linear_sum_assignment(cost)
    square = np.zeros((side, side))
    square[:rows, :columns] = cost
    for reduce in (np.mean, np.min):
        for axis in (1, 0):
            square -= reduce(square, axis=axis, keepdims=True)
    found, chosen = linear_sum_assignment(square)
    real = (found < rows) & (chosen < columns)
    return found[real], chosen[real]


def assign(cost: Tensor, sizes: Sequence[int]) -> Assignment:
    """Assign the columns of (L, B, N, M) costs to the rows, one to one, within every layer and image.

    Args:
        cost: on any device; NaN and infinite entries are assigned only where nothing else is left.
        sizes: how many of the M columns are targets, one count an image; the others are padding.
    """
    columns = [[np.arange(size) for size in sizes]] * len(cost)
    (on_host,) = to_host(cost)
    return Assignment(*torch.from_numpy(solve(on_host, columns)).to(cost.device))


@dataclass(frozen=True)
class HungarianMatcher:
    """Matches the queries of every decoder layer with the objects of their image.

    Args:
        class_cost, bbox_cost, giou_cost: weights of the three parts.
        head: softmax: C_class = -softmax(z)[class]. Sigmoid: the difference of the focal loss between calling the query
            the class and not (Deformable DETR), with `alpha` and `gamma`.
    """

    class_cost: float
    bbox_cost: float
    giou_cost: float
    head: Head
    alpha: float = 0.25
    gamma: float = 2.0

    @classmethod
    def from_config(cls, config: PreTrainedConfig, head: Head) -> HungarianMatcher:
        """With the weights of a transformers configuration; the RT-DETR families call them `matcher_...`."""
        prefix = "" if hasattr(config, "class_cost") else "matcher_"
        weights = {name: getattr(config, prefix + name) for name in ("class_cost", "bbox_cost", "giou_cost")}
        focal = {name: getattr(config, f"matcher_{name}") for name in ("alpha", "gamma") if hasattr(config, f"matcher_{name}")}
        return cls(**weights, **focal, head=head)

    def __call__(self, logits: Tensor, boxes: Tensor, targets: PaddedTargets) -> Assignment:
        """logits (L, B, N, C), boxes (L, B, N, 4) -> min(N, size) pairs for every layer and image."""
        return assign(self.cost(logits, boxes, targets), targets.sizes)

    @torch.no_grad()
    def cost(self, logits: Tensor, boxes: Tensor, targets: PaddedTargets) -> Tensor:
        """logits (L, B, N, C), boxes (L, B, N, 4) in (cx, cy, w, h) -> (L, B, N, M)."""
        classes = targets.classes[None, :, None].expand(*logits.shape[:-1], -1)
        if self.head.has_no_object:
            by_class = self.class_costs(logits.float()).gather(-1, classes)
        else:  # what the other classes would cost is not asked
            by_class = self.class_costs(logits.gather(-1, classes).float())
        return self.class_cost * by_class + box_cost(boxes, targets.boxes, self.bbox_cost, self.giou_cost)

    def class_costs(self, logits: Tensor) -> Tensor:
        """(..., C) logits -> (..., K) cost of every class."""
        if self.head.has_no_object:
            return -self.head.probabilities(logits)
        p = logits.sigmoid()
        positive = -self.alpha * (1 - p) ** self.gamma * F.logsigmoid(logits)
        negative = -(1 - self.alpha) * p**self.gamma * F.logsigmoid(-logits)
        return positive - negative
