"""PASCAL VOC's average precision at one IoU threshold, as the 2010 and later challenges define it (all points interpolated).

Its differences from COCO's AP50: the area under the precision curve is exact instead of sampled at 101 recalls, a detection
goes to the object it overlaps most whether that is taken or not, and there is no limit of detections an image. Boxes are
continuous: a pixel is not added to their sides, as the challenge's own program does for boxes given as first and last pixel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_convert, box_iou


def voc_ap(ground_truth: dict[str, Any], results: Iterable[dict[str, Any]], iou: float = 0.5) -> dict[str, float]:
    """AP of every class by name, -1 where a class has no objects; their mean over the others is VOC's mAP.

    Args:
        ground_truth: a COCO dictionary; objects with `iscrowd` or `difficult` count neither as found nor as missed.
        results: detections in COCO's results format.
        iou: a detection is right where it overlaps an object of its class by at least this much (VOC's 0.5).
    """
    objects: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for entry in ground_truth["annotations"]:
        objects[entry["category_id"], entry["image_id"]].append(entry)
    detections: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in results:
        detections[entry["category_id"]].append(entry)
    return {
        category["name"]: _class_ap(
            {image: found for (owner, image), found in objects.items() if owner == category["id"]},
            detections[category["id"]],
            iou,
        )
        for category in ground_truth["categories"]
    }


def voc_metrics(ground_truth: dict[str, Any], results: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """{"ap50": VOC's mAP, "per_class": AP of every class by name}, arguments as `voc_ap`'s."""
    per_class = voc_ap(ground_truth, results)
    return {"ap50": mean_ap(per_class), "per_class": per_class}


def mean_ap(per_class: dict[str, float]) -> float:
    """The mean over the classes that have objects; -1 where none has."""
    defined = [value for value in per_class.values() if value >= 0]
    return float(np.mean(defined)) if defined else -1.0


def _class_ap(objects: dict[int, list[dict[str, Any]]], detections: list[dict[str, Any]], iou: float) -> float:
    counted = sum(not _ignored(entry) for found in objects.values() for entry in found)
    if not counted:
        return -1.0
    boxes = {image: _corners(found) for image, found in objects.items()}
    taken: set[tuple[int, int]] = set()
    right: list[bool] = []
    for entry in sorted(detections, key=lambda entry: -entry["score"]):
        image = entry["image_id"]
        overlaps = box_iou(_corners([entry]), boxes[image])[0] if image in boxes else torch.zeros(0)
        best = int(overlaps.argmax()) if len(overlaps) else -1
        hit = best >= 0 and bool(overlaps[best] >= iou)
        if hit and _ignored(objects[image][best]):
            continue
        right.append(hit and (image, best) not in taken)
        if hit:
            taken.add((image, best))
    hits = np.cumsum(right, dtype=np.float64)
    recall, precision = hits / counted, hits / np.arange(1, len(right) + 1)
    # Highest precision at this recall or a larger one, integrated over the recalls where it steps.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def _ignored(entry: dict[str, Any]) -> bool:
    return bool(entry.get("iscrowd") or entry.get("difficult"))


def _corners(entries: list[dict[str, Any]]) -> torch.Tensor:
    return box_convert(torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float64), "xywh", "xyxy")
