"""Detections in the field names of COCO's results and of Roboflow's answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from leandetr.evaluation.coco import to_results
from leandetr.structures import ClassMap, Detections


@dataclass(frozen=True)
class Found:
    """What one photograph shows.

    width, height: of the upright photograph, in pixels. several: whether its file has more frames than the one that was looked
    at, the first. seconds: for decoding it and detecting, without waiting.
    """

    detections: Detections
    width: int
    height: int
    several: bool
    seconds: float


def coco(found: Found, classes: ClassMap) -> dict[str, Any]:
    """Entries of COCO's results, each with its `category_name`: bbox is [x, y, width, height] in pixels, category_id the data
    set's own. Without `image_id`, which a sender knows."""
    rows = to_results(found.detections, 0, classes)
    names = [classes.names[label] for label in found.detections.labels.tolist()]
    detections = [
        {key: value for key, value in row.items() if key != "image_id"} | {"category_name": name}
        for row, name in zip(rows, names, strict=True)
    ]
    return _image(found) | {"detections": detections}


def roboflow(found: Found, classes: ClassMap) -> dict[str, Any]:
    """As the server `inference` of Roboflow answers: x and y are a box's centre, class_id is a place among the model's classes,
    from 0 (https://docs.roboflow.com/deploy/serverless/object-detection)."""
    numbers = found.detections
    rows = zip(numbers.labels.tolist(), numbers.scores.tolist(), numbers.boxes.double().tolist(), strict=True)
    predictions = [
        {
            "x": (x0 + x1) / 2,
            "y": (y0 + y1) / 2,
            "width": x1 - x0,
            "height": y1 - y0,
            "confidence": score,
            "class": classes.names[label],
            "class_id": label,
            "detection_id": str(uuid4()),
        }
        for label, score, (x0, y0, x1, y1) in rows
    ]
    return {"inference_id": str(uuid4())} | _image(found) | {"predictions": predictions}


def _image(found: Found) -> dict[str, Any]:
    several = {"several_frames": True} if found.several else {}
    return {"time": round(found.seconds, 4), "image": {"width": found.width, "height": found.height} | several}


FORMS: dict[str, Callable[[Found, ClassMap], dict[str, Any]]] = {"coco": coco, "roboflow": roboflow}
