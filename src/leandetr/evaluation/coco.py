"""COCO's average precision and recall: the one place where an AP comes from.

The matching and the integration are `faster-coco-eval`'s, whose twelve numbers equal pycocotools'. AP is a fraction in [0, 1];
0.5 points are 0.005.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from torch.utils.data import Subset

from leandetr.data.batches import Loader
from leandetr.data.coco import CocoDataset
from leandetr.errors import UserError, reason
from leandetr.processes import blocks, gathered, share
from leandetr.structures import Batch, ClassMap, Detections

Predict = Callable[[Batch], list[Detections]]
Progress = Callable[[int, int], None]

PAIRS = 400_000  # of a class and an image that are evaluated at once: COCO's validation images and its 80 classes


@dataclass(frozen=True)
class CocoMetrics:
    """The twelve numbers of COCO's `summarize` for boxes, in its order, and the AP of every class.

    ap averages IoU thresholds 0.50, 0.55, ... 0.95; ap50 and ap75 are at one threshold; small, medium and large are areas below
    32^2, up to 96^2 and above, in pixels of the photograph. ar_1, ar_10, ar_100: recall with so many detections an image.
    A number is -1 where it is undefined because there are no such objects, as in pycocotools.

    per_class: class name -> ap of that class.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar_1: float
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, float]:
        """The twelve numbers by name, without the classes."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "per_class"}


def evaluate(
    predict: Predict,
    dataset: CocoDataset,
    batch_size: int = 8,
    workers: int = 0,
    progress: Progress | None = None,
) -> tuple[CocoMetrics, list[dict[str, Any]]]:
    """Predict every image of a data set, those without boxes too, and compare with its boxes.

    Args:
        predict: a runtime, `Detector.predict`, or any callable from a batch to one `Detections` an image.
        dataset: with the evaluation transform of what predicts.
        batch_size: images in a call.
        workers: processes that read images; 0 reads them here.
        progress: called with the images done and their number.

    Returns:
        The metrics, and the detections as a list in COCO's results format.

    Raises:
        UserError: the classes of what predicts (its `class_map`, where it has one) are not the data set's.
    """
    known = getattr(predict, "class_map", dataset.class_map)
    if known.names != dataset.class_map.names:
        raise UserError(
            f"the model's classes ({', '.join(known.names)}) are not the data set's ({', '.join(dataset.class_map.names)}); "
            "give the data set that the model was trained for"
        )
    results = predict_dataset(predict, dataset, dataset.class_map, batch_size, workers, progress)
    return evaluate_results(dataset.ground_truth(), results), results


def predict_dataset(
    predict: Predict,
    dataset: CocoDataset | Subset[Any],
    class_map: ClassMap,
    batch_size: int = 8,
    workers: int = 0,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """The detections on a data set, or a part of one, in COCO's results format. device: where `predict` takes its pixels."""
    found = predictions(predict, dataset, class_map, batch_size, workers, progress, device)
    return [row for rows in found for row in rows]


def predictions(
    predict: Predict,
    dataset: CocoDataset | Subset[Any],
    class_map: ClassMap,
    batch_size: int = 8,
    workers: int = 0,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[list[dict[str, Any]]]:
    """As `predict_dataset`, an image at a time."""
    done = 0
    for batch in Loader(dataset, batch_size, workers, device):
        for target, detections in zip(batch["labels"], predict(batch), strict=True):
            yield to_results(detections, int(target["image_id"]), class_map)
        done += len(batch["labels"])
        if progress is not None:
            progress(done, len(dataset))


def predict_together(
    predict: Predict,
    dataset: CocoDataset,
    batch_size: int = 8,
    workers: int = 0,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """As `predict_dataset`, with the images shared among the processes batch by batch, and their detections gathered: in each
    process the same rows, in the order in which one process would give them."""
    own = [index for block in share(blocks(len(dataset), batch_size)) for index in block]
    part = dataset if len(own) == len(dataset) else Subset(dataset, own)
    rows = predict_dataset(predict, part, dataset.class_map, batch_size, workers, progress, device)
    place = {image_id: index for index, image_id in enumerate(dataset.image_ids.tolist())}
    return sorted((row for rows in gathered(rows) for row in rows), key=lambda row: place[row["image_id"]])


def to_results(detections: Detections, image_id: int, class_map: ClassMap) -> list[dict[str, Any]]:
    """COCO's results format: {"image_id", "category_id", "bbox": [x, y, width, height] in pixels, "score"}."""
    corners = detections.boxes.double().cpu()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    return [
        {"image_id": image_id, "category_id": class_map.dataset_ids[label], "bbox": box, "score": score}
        for label, box, score in zip(detections.labels.tolist(), boxes.tolist(), detections.scores.tolist(), strict=True)
    ]


def evaluate_results(ground_truth: dict[str, Any], results: Iterable[dict[str, Any]]) -> CocoMetrics:
    """COCO's numbers for detections that any program made.

    Args:
        ground_truth: a COCO dictionary (`images`, `annotations`, `categories`). An annotation without `area` has its box's; the
            annotations' own ids are not used.
        results: detections in COCO's results format. As in pycocotools, those of categories that the ground truth does not
            have are left out.

    Raises:
        UserError: an entry lacks a key, has a box or score that is not finite numbers, is of an image that the ground truth
            does not have, or no entry has one of its categories.
    """
    truth = COCO(_ground_truth(ground_truth))
    found = truth.loadRes(_checked(results, set(truth.imgs), truth.cats))
    evaluation = _evaluated(truth, found)
    names = [truth.cats[category]["name"] for category in evaluation.params.catIds]
    numbers: dict[str, Any] = {item.name: float(number) for item, number in zip(fields(CocoMetrics), evaluation.stats[:12])}
    return CocoMetrics(**numbers, per_class=dict(zip(names, _class_precision(evaluation), strict=True)))


def _evaluated(truth: COCO, found: COCO) -> COCOeval_faster:
    """Some classes after others: the evaluation holds a kilobyte for every class and image, and classes do not touch."""
    classes, precision, recall = sorted(truth.cats), [], []
    size = max(1, PAIRS // max(1, len(truth.imgs)))
    for first in range(0, max(1, len(classes)), size):
        evaluation = COCOeval_faster(truth, found, iouType="bbox", print_function=_silent)
        evaluation.params.catIds = classes[first : first + size]
        evaluation.evaluate()
        evaluation.accumulate()
        precision.append(evaluation.eval["precision"])
        recall.append(evaluation.eval["recall"])
    evaluation.params.catIds = classes
    evaluation.eval = {"precision": np.concatenate(precision, axis=2), "recall": np.concatenate(recall, axis=1)}
    evaluation.summarize()
    return evaluation


def _ground_truth(ground_truth: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """A copy with what the evaluation reads alone: it writes into the dictionaries it is given. Annotations are numbered from
    1, because in its matches 0 means "unmatched"."""
    annotations = [
        {
            "id": number,
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": entry["bbox"],
            "area": entry.get("area", entry["bbox"][2] * entry["bbox"][3]),
            "iscrowd": int(entry.get("iscrowd", 0)),
        }
        for number, entry in enumerate(ground_truth["annotations"], start=1)
    ]
    images = [{"id": image["id"]} for image in ground_truth["images"]]
    categories = [{"id": category["id"], "name": category["name"]} for category in ground_truth["categories"]]
    return {"images": images, "annotations": annotations, "categories": categories}


def _checked(results: Iterable[dict[str, Any]], images: set[int], categories: dict[int, Any]) -> list[dict[str, Any]]:
    """The detections' four keys alone, those of unknown categories left out."""
    kept, strangers = [], set()
    for number, entry in enumerate(results):
        try:
            image, category = entry["image_id"], entry["category_id"]
            hash((image, category))
            box, score = [float(value) for value in entry["bbox"]], float(entry["score"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"detection {number} is not in COCO's results format ({reason(error)}); "
                "each needs image_id, category_id, bbox [x, y, width, height] and score"
            ) from error
        if len(box) != 4 or not all(map(math.isfinite, [*box, score])):
            raise UserError(f"detection {number} has bbox {box} and score {score}; give four finite numbers and a finite score")
        if image not in images:
            raise UserError(
                f"detection {number} is of image {image}, which the ground truth does not have; name its own annotations"
            )
        if category in categories:
            kept.append({"image_id": image, "category_id": category, "bbox": box, "score": score})
        else:
            strangers.add(category)
    if strangers and not kept:
        raise UserError(
            f"no detection has a category of the ground truth: they have {_some(strangers)}, it has {_some(categories)}; "
            "write the data set's own category ids"
        )
    return kept


def _class_precision(evaluation: COCOeval_faster) -> list[float]:
    """AP of every class, -1 where there are no such objects; `precision` is (thresholds, recalls, classes, areas, counts)."""
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    defined = [precision[:, :, index][precision[:, :, index] > -1] for index in range(precision.shape[2])]
    return [float(values.mean()) if values.size else -1.0 for values in defined]


def _some(values: Iterable[int]) -> str:
    ordered: Sequence[str] = [str(value) for value in sorted(values, key=str)]
    return ", ".join(ordered[:5]) + (", ..." if len(ordered) > 5 else "")


def _silent(*_: Any) -> None:
    """In place of the evaluation's printing."""
