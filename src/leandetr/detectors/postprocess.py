"""From the last layer's logits and boxes to detections: the one function, whatever computed the tensors."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from leandetr.boxes import to_corners
from leandetr.heads import Head
from leandetr.structures import Detections


@torch.no_grad()
def postprocess(logits: Tensor, boxes: Tensor, head: Head, sizes: Tensor, top_k: int = 100) -> list[Detections]:
    """The `top_k` best detections of every image, highest score first.

    A softmax head gives every query its likeliest class (DETR's `PostProcess`); a sigmoid head may give one query several
    classes, because the best of all N x K scores are taken (Deformable DETR's). Boxes are not clipped to the photograph,
    as in both.

    Args:
        logits: (B, N, C). Softmax: C = K + 1 and the last column is no-object. Sigmoid: C = K.
        boxes: (B, N, 4), (cx, cy, w, h) in [0, 1] of the photograph.
        head: what the columns mean.
        sizes: (B, 2), (height, width) of the original photographs in pixels.
        top_k: at most so many; fewer where the queries give fewer.

    Returns:
        One `Detections` an image, on the device of `logits`.
    """
    answers = ranked if logits.is_cuda else _ranked_by_numpy
    return [Detections(*image) for image in zip(*answers(logits, boxes, head, sizes, top_k), strict=True)]


def _ranked_by_numpy(logits: Tensor, boxes: Tensor, head: Head, sizes: Tensor, top_k: int) -> Iterator[Sequence[Tensor]]:
    """`ranked` on a processor: behind a call of an engine its dozen operators cost 0.4 ms, for which a small detector waits,
    and NumPy's cost half of that."""
    probabilities = head.probabilities(logits.float())
    candidates = probabilities.amax(2) if head.has_no_object else probabilities.flatten(1)
    scores, places = candidates.topk(min(top_k, candidates.shape[1]))
    chosen, rows = places.numpy(), np.arange(len(places))[:, None]
    if head.has_no_object:
        queries, labels = chosen, probabilities.numpy()[rows, chosen].argmax(2)
    else:
        queries, labels = np.divmod(chosen, probabilities.shape[2])
    found = boxes.detach().float().numpy()[rows, queries]
    centre, half = found[..., :2], found[..., 2:] / 2
    scale = sizes.numpy()[:, None, ::-1].astype(np.float32)
    pixels = np.concatenate([(centre - half) * scale, (centre + half) * scale], 2)
    return map(torch.Tensor.unbind, (scores, torch.from_numpy(labels), torch.from_numpy(pixels)))


def ranked(logits: Tensor, boxes: Tensor, head: Head, sizes: Tensor, top_k: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """`postprocess` as a function of tensors alone: scores (B, k), labels (B, k) and boxes (B, k, 4) of every image.

    sizes: (B, 2), or (1, 2) where all images are of one size.
    """
    probabilities = head.probabilities(logits.float())
    if head.has_no_object:
        scores, labels = probabilities.max(-1)
        scores, chosen = scores.topk(min(top_k, scores.shape[1]))
        labels, queries = labels.gather(1, chosen), chosen
    else:
        flat = probabilities.flatten(1)
        scores, chosen = flat.topk(min(top_k, flat.shape[1]))
        labels, queries = chosen % logits.shape[2], chosen // logits.shape[2]
    height, width = sizes.to(boxes.device, torch.float32).unbind(1)
    pixels = to_corners(boxes.float()) * torch.stack([width, height, width, height], 1)[:, None]
    pixels = pixels.gather(1, queries[..., None].expand(-1, -1, 4))
    return scores, labels, pixels
