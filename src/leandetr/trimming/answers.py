"""What every decoder layer finds with every number of queries, of one forward a photograph and size.

The decoder runs again over the same memory with fewer queries: those see each other in its self-attention, so that a part of
the answers of all is not the answer of a part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from leandetr.detectors.detector import Detector
from leandetr.detectors.postprocess import postprocess
from leandetr.detectors.query_sets import has_distillation_queries, queries_of
from leandetr.evaluation import coco
from leandetr.losses.matcher import box_cost, linear_assignment, to_host
from leandetr.structures import Batch, Detections, DetectorOutput, Queries

Found = list[tuple[int, Detections]]  # image ids and what was found there


@torch.no_grad()
def answers(
    detector: Detector, batches: Iterable[Batch], layers: Sequence[int], counts: Sequence[int]
) -> dict[tuple[int, int], Found]:
    """(layers, queries) -> the detections on all images of a detector with so many decoder layers and queries.

    counts: the first so many of the detector's queries, where it has more.
    """
    found: dict[tuple[int, int], Found] = {(layer, count): [] for layer in layers for count in counts}
    for batch in batches:
        output = _output(detector, batch)
        sizes = torch.stack([target["orig_size"] for target in batch["labels"]])
        ids = [int(target["image_id"]) for target in batch["labels"]]
        for count in counts:
            logits, boxes = _layers(detector, output, count)
            for layer in layers:
                detections = postprocess(logits[layer - 1], boxes[layer - 1], detector.head, sizes)
                found[layer, count] += zip(ids, map(_on_cpu, detections), strict=True)
    return found


def ap_of(found: Found, truth: dict[str, Any], detector: Detector) -> float:
    """COCO's AP of one candidate's detections."""
    results = [result for image, each in found for result in coco.to_results(each, image, detector.class_map)]
    return coco.evaluate_results(truth, results).ap


@torch.no_grad()
def order_of_use(detector: Detector, batches: Iterable[Batch]) -> list[int]:
    """The rows of its learned queries, the most useful first.

    Every object is matched with a query of the last layer, one to one at the least cost (DETR, eq. 1, with the probability of
    its class, weights 2, 5 and 2); a query's use is the sum over all images of the probabilities that it gave the classes of
    its objects.
    """
    use = torch.zeros(detector.config.num_queries)
    for batch in batches:
        output = _output(detector, batch)
        probabilities = detector.head.probabilities(output.logits[-1])
        for image, target in enumerate(batch["labels"]):
            labels, boxes = target["class_labels"].to(probabilities.device), target["boxes"].to(probabilities.device)
            given = probabilities[image][:, labels]
            (cost,) = to_host(box_cost(output.boxes[-1, image], boxes) - 2 * given)
            queries, objects = map(torch.from_numpy, linear_assignment(cost))
            use[queries] += given.cpu()[queries, objects]
    return use.argsort(descending=True, stable=True).tolist()


def _output(detector: Detector, batch: Batch) -> DetectorOutput:
    device = next(detector.parameters()).device
    mask = batch["pixel_mask"].to(device)
    return detector(batch["pixel_values"].to(device), mask, padded=batch.get("padded", True))


def _layers(detector: Detector, output: DetectorOutput, count: int) -> tuple[Tensor, Tensor]:
    """Logits and boxes of all layers, of the queries that answer."""
    config = detector.config
    if has_distillation_queries(config) and output.distillation is not None:
        answering = queries_of(config, config.answering_queries)
        both = (output, output.distillation)
        return (
            torch.cat([part.logits for part in both], 2)[:, :, answering],
            torch.cat([part.boxes for part in both], 2)[:, :, answering],
        )
    if count < config.num_queries:
        own = output.queries
        first = (None if part is None else part[:, :count] for part in (own.content, own.position, own.reference))
        output = detector.decode(Queries(*first), output.memory)
    return output.logits, output.boxes


def _on_cpu(found: Detections) -> Detections:
    return Detections(found.scores.cpu(), found.labels.cpu(), found.boxes.cpu())
