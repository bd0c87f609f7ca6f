"""One matching a step in transformers' losses, in place of one a layer; and one loss, where that is the same.

Their criteria ask their matcher for every decoder layer, and for the encoder's proposals, in turn: each time all queries of
the batch are compared with all of its objects, the costs are copied to the host, which waits for the device, and the pairs are
copied back image by image. Here the first question is answered for all of them: costs within each image, one copy to the host,
one back. The losses stay theirs, and the pairs are those that their matchers find.

Where a loss is a sum over the queries of all layers and images (`SUMS`), it is asked once too: of all layers' queries in a row,
as if they were those of one image with all objects of the batch. A batch of 16 images and 13 layers has hundreds of small
kernels otherwise, one an image and layer, for which a GPU waits; and the boxes of the pairs are compared pair by pair, where
theirs compare all with all and read the diagonal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou, generalized_box_iou
from transformers.loss import loss_deformable_detr, loss_deimv2, loss_for_object_detection, loss_lw_detr, loss_rt_detr
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
#: exactly these are sums over queries; their subclasses add what is not (DDF, D-FINE), a softmax's weighted mean is none
SUMS: tuple[Any, ...] = (
    loss_rt_detr.RTDetrLoss,
    loss_deformable_detr.DeformableDetrImageLoss,
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
    found = _solved(matcher, layers, targets, groups)
    sizes = [len(target["class_labels"]) for target in targets]
    counts = [groups * min(layer["logits"].shape[1] // groups, size) for layer in layers for size in sizes]
    pairs = torch.from_numpy(np.concatenate(found, axis=1)[1:]).to(device or layers[0]["logits"].device).split(counts, dim=1)
    of_images = [(own[0], own[1]) for own in pairs]
    return [of_images[place : place + len(targets)] for place in range(0, len(of_images), len(targets))]


def pairs_in_a_row(
    matcher: HungarianMatcher, layers: Sequence[Mapping[str, Tensor]], targets: Sequence[Objects], groups: int = 1
) -> tuple[Tensor, Tensor]:
    """The pairs of `match_layers` among the queries of all layers and images in a row, layer by layer, image by image, and all
    objects of the images in a row: (P,) queries and (P,) objects."""
    sizes = np.array([len(target["class_labels"]) for target in targets])
    first = np.cumsum(sizes) - sizes  # of each image's objects
    queries, objects, start = [], [], 0
    for layer, (images, own, chosen) in zip(layers, _solved(matcher, layers, targets, groups), strict=True):
        number = layer["logits"].shape[1]
        queries.append(start + images * number + own)
        objects.append(first[images] + chosen)
        start += len(targets) * number
    pairs = np.stack([np.concatenate(queries), np.concatenate(objects)])
    of_queries, of_objects = torch.from_numpy(pairs).to(layers[0]["logits"].device)
    return of_queries, of_objects


def _solved(
    matcher: HungarianMatcher, layers: Sequence[Mapping[str, Tensor]], targets: Sequence[Objects], groups: int
) -> list[np.ndarray]:
    """Of each layer (3, P) int64: image, query and object of its pairs, by image and group."""
    padded = pad_targets(targets)
    alike: dict[int, list[int]] = defaultdict(list)  # number of queries -> the layers that have so many
    for number, layer in enumerate(layers):
        alike[layer["logits"].shape[1]].append(number)
    costs = []
    for numbers in alike.values():
        logits, boxes = (torch.stack([layers[number][name] for number in numbers]) for name in ("logits", "pred_boxes"))
        costs.append(matcher.cost(logits, boxes, padded).unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1))
    columns = [np.arange(size) for size in padded.sizes]
    found: dict[int, np.ndarray] = {}
    for numbers, cost in zip(alike.values(), to_host(*costs), strict=True):
        places, images, queries, chosen = solve(cost, [columns] * len(cost))
        layer, group = np.divmod(places, groups)
        pairs = np.stack([images, queries + group * cost.shape[2], chosen])[:, np.lexsort((group, images, layer))]
        found |= zip(numbers, np.split(pairs, len(numbers), axis=1), strict=True)  # each layer has as many
    return [found[number] for number in range(len(layers))]


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
        groups = getattr(criterion, "group_detr", 1)
        if type(criterion) in SUMS:
            merged = _in_a_row(criterion, outputs, layers, targets)
            criterion.matcher = Found([merged], [[pairs_in_a_row(matcher, layers, targets, groups)]])
            objects: Any = {name: torch.cat([target[name] for target in targets]) for name in ("class_labels", "boxes")}
            with _pair_by_pair():
                return forward(criterion, merged, [objects])
        # DEIMv2 joins the layers' pairs one by one, on the host
        device = "cpu" if getattr(criterion, "use_dense_one_to_one", False) else None
        criterion.matcher = Found(layers, match_layers(matcher, layers, targets, groups, device))
        return forward(criterion, outputs, targets)

    return run


def _in_a_row(
    criterion: Any, outputs: Mapping[str, Any], layers: Sequence[Mapping[str, Tensor]], targets: Sequence[Objects]
) -> dict[str, Any]:
    """The outputs of a criterion whose layers are one layer of one image; the denoising ones' another, whose pairs the
    criterion is told."""
    if "dn_auxiliary_outputs" not in outputs:
        return _joined(layers)
    denoising, meta = outputs["dn_auxiliary_outputs"], outputs["denoising_meta_values"]
    batch, number = denoising[0]["logits"].shape[:2]
    device, copies = denoising[0]["logits"].device, meta["dn_num_group"]
    sizes = np.array([len(target["class_labels"]) for target in targets])
    images = np.repeat(np.arange(batch), copies * sizes)
    first = np.cumsum(sizes) - sizes
    chosen = np.concatenate([np.tile(np.arange(start, start + size), copies) for start, size in zip(first, sizes)])
    starts, chosen = torch.from_numpy(np.stack([images * number, chosen])).to(device)
    queries = starts + torch.cat(list(meta["dn_positive_idx"]))
    shift = batch * number * torch.arange(len(denoising), device=device)
    pairs = (queries + shift[:, None]).flatten(), chosen.repeat(len(denoising))
    criterion.get_cdn_matched_indices = lambda *_: [pairs]
    return _joined(layers) | {"dn_auxiliary_outputs": [_joined(denoising)], "denoising_meta_values": meta}


def _joined(layers: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Layers of (B, N, ...) -> one of (1, sum of all B * N, ...)."""
    return {name: torch.cat([layer[name].flatten(0, 1) for layer in layers])[None] for name in ("logits", "pred_boxes")}


class _Diagonal:
    """Stands for a matrix of which only the diagonal is asked."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Tensor:
        if func is not torch.diag:
            raise TypeError(f"only the diagonal of compared pairs is known, not what {func} asks")
        return args[0].values


@contextmanager
def _pair_by_pair() -> Iterator[None]:
    """transformers' losses compare the boxes of pairs, not all boxes with all."""

    def ious(boxes1: Tensor, boxes2: Tensor) -> tuple[_Diagonal, None]:
        return _Diagonal(box_iou(boxes1[:, None], boxes2[:, None]).flatten()), None

    def gious(boxes1: Tensor, boxes2: Tensor) -> _Diagonal:
        return _Diagonal(generalized_box_iou(boxes1[:, None], boxes2[:, None]).flatten())

    replaced = [
        (module, name, getattr(module, name), own)
        for module in ASKING
        for name, own in (("box_iou", ious), ("generalized_box_iou", gious))
    ]
    for module, name, _, own in replaced:
        setattr(module, name, own)
    try:
        yield
    finally:
        for module, name, theirs, _ in replaced:
            setattr(module, name, theirs)


def _unasked(measure: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def run(boxes1: Tensor, boxes2: Tensor) -> Tensor:
        return (generalized_box_iou if boxes1.is_cuda else measure)(boxes1, boxes2)

    return run
