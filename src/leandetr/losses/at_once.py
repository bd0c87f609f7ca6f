"""One matching a step in transformers' losses, in place of one a layer.

Their criteria ask their matcher for every decoder layer, and for the encoder's proposals, in turn: each time all queries of
the batch are compared with all of its objects, the costs are copied to the host, which waits for the device, and the pairs are
copied back image by image. Here the first question is answered for all of them: costs within each image, one copy to the host,
one back. The losses stay theirs, and the pairs are those that their matchers find.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou
from transformers.loss import loss_deimv2, loss_for_object_detection, loss_lw_detr, loss_rt_detr
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

from leandetr.heads import Head
from leandetr.losses.matcher import HungarianMatcher, pad_targets, solve, to_host
from leandetr.structures import Objects

#: whose `forward` asks the matcher; the others inherit it
CRITERIA: tuple[Any, ...] = (
    loss_for_object_detection.ImageLoss,
    loss_rt_detr.RTDetrLoss,
    loss_deimv2.Deimv2Loss,
    loss_lw_detr.LwDetrImageLoss,
)
#: where a GIoU asks the device whether boxes are in order
ASKING: tuple[Any, ...] = (loss_for_object_detection, loss_rt_detr, loss_lw_detr)

#: the pairs of a layer: of each image, queries and the targets that they have
Pairs = list[tuple[Tensor, Tensor]]


@contextmanager
def matching_at_once() -> Iterator[None]:
    """transformers' detection losses that are computed inside match all layers at once.

    On a GPU they do without the question whether all boxes are in order too, which waits for the device twice a layer: of boxes
    that are not, the loss is what it is.
    """
    forwards = [criterion.forward for criterion in CRITERIA]
    measures = [module.generalized_box_iou for module in ASKING]
    for criterion, forward in zip(CRITERIA, forwards, strict=True):
        criterion.forward = _with_pairs(forward)
    for module, measure in zip(ASKING, measures, strict=True):
        module.generalized_box_iou = _unasked(measure)
    try:
        yield
    finally:
        for criterion, forward in zip(CRITERIA, forwards, strict=True):
            criterion.forward = forward
        for module, measure in zip(ASKING, measures, strict=True):
            module.generalized_box_iou = measure


class Found(nn.Module):
    """In place of a criterion's matcher: answers for the layers whose pairs are found already, by their logits."""

    def __init__(self, layers: Sequence[Mapping[str, Tensor]], pairs: Sequence[Pairs]) -> None:
        super().__init__()
        self.pairs = {id(layer["logits"]): own for layer, own in zip(layers, pairs, strict=True)}

    def forward(self, outputs: Mapping[str, Tensor], targets: Sequence[Objects], group_detr: int = 1) -> Pairs:
        return self.pairs[id(outputs["logits"])]


def match_layers(
    matcher: HungarianMatcher,
    layers: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Objects],
    groups: int = 1,
    device: torch.device | str | None = None,
) -> list[Pairs]:
    """The pairs of every layer, on a device, by default the layers' own.

    Args:
        layers: "logits" (B, N, C) and "pred_boxes" (B, N, 4) of each; N may differ between them.
        targets: the objects of the B images.
        groups: into so many equal groups the N queries are divided, each of which is matched with all objects.
    """
    padded = pad_targets(targets)
    alike: dict[int, list[int]] = defaultdict(list)  # number of queries -> the layers that have so many
    for number, layer in enumerate(layers):
        alike[layer["logits"].shape[1]].append(number)
    costs = []
    for numbers in alike.values():
        logits, boxes = (torch.stack([layers[number][name] for number in numbers]) for name in ("logits", "pred_boxes"))
        costs.append(matcher.cost(logits, boxes, padded).unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1))
    columns = [np.arange(size) for size in padded.sizes]
    solved, counts = [], []
    for numbers, cost in zip(alike.values(), to_host(*costs), strict=True):
        rows = cost.shape[2]
        places, images, queries, chosen = solve(cost, [columns] * len(cost))
        layer, group = np.divmod(places, groups)
        by_image = np.lexsort((group, images, layer))
        solved.append(np.stack([queries + group * rows, chosen])[:, by_image])
        counts += [groups * min(rows, size) for _ in numbers for size in padded.sizes]
    pairs = torch.from_numpy(np.concatenate(solved, axis=1)).to(device or padded.boxes.device).split(counts, dim=1)
    order = [number for numbers in alike.values() for number in numbers]
    images_of = {number: pairs[place * len(targets) : (place + 1) * len(targets)] for place, number in enumerate(order)}
    return [[(own[0], own[1]) for own in images_of[number]] for number in range(len(layers))]


def equivalent(matcher: nn.Module) -> HungarianMatcher | None:
    """Our matcher with the costs of one of transformers'; None for one that is not known."""
    asked: Any = matcher
    focal: dict[str, Any] = {}
    if type(matcher) is loss_for_object_detection.HungarianMatcher:
        head = Head.SOFTMAX
    elif type(matcher) in (DeformableDetrHungarianMatcher, loss_lw_detr.LwDetrHungarianMatcher):
        head = Head.SIGMOID
    elif type(matcher) is loss_rt_detr.RTDetrHungarianMatcher and asked.use_focal_loss:
        head, focal = Head.SIGMOID, {"alpha": asked.alpha, "gamma": asked.gamma}
    else:
        return None
    return HungarianMatcher(asked.class_cost, asked.bbox_cost, asked.giou_cost, head, **focal)


def _with_pairs(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A criterion's `forward` whose matcher has found all pairs before it is asked."""

    def run(criterion: Any, outputs: dict[str, Any], targets: Sequence[Objects]) -> Any:
        matcher = equivalent(criterion.matcher)
        if matcher is None:
            return forward(criterion, outputs, targets)
        layers = [
            outputs,
            *outputs.get("auxiliary_outputs", []),
            *([outputs["enc_outputs"]] if "enc_outputs" in outputs else []),
        ]
        # DEIMv2 joins the layers' pairs one by one, on the host
        device = "cpu" if getattr(criterion, "use_dense_one_to_one", False) else None
        pairs = match_layers(matcher, layers, targets, getattr(criterion, "group_detr", 1), device)
        criterion.matcher = Found(layers, pairs)
        return forward(criterion, outputs, targets)

    return run


def _unasked(measure: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def run(boxes1: Tensor, boxes2: Tensor) -> Tensor:
        return (generalized_box_iou if boxes1.is_cuda else measure)(boxes1, boxes2)

    return run
