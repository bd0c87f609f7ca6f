"""A teacher that has answered already: its detections in a file of COCO's results format, written by any program."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import torch

from leandetr.errors import UserError
from leandetr.files import read_json
from leandetr.structures import ClassMap, Detections


class Predictions:
    """Detections by image id. They reach the terms through the training set, which gives every view of an image the boxes that
    belong to it.

    Args:
        file: a list of {"image_id", "category_id", "bbox": [x, y, width, height] in pixels of the photograph, "score"}.
        class_map: the student's classes; category ids are the data set's. Detections of other categories are left out.

    Attributes:
        detections: image id -> `Detections`, highest score first.

    Raises:
        UserError: the file cannot be read, is no such list, or has no detection of the student's classes.
    """

    def __init__(self, file: Path, class_map: ClassMap) -> None:
        self.file = Path(file)
        entries = read_json(self.file)
        if not isinstance(entries, list):
            raise UserError(f"{file} is not a list of detections in COCO's results format; name the file of results")
        found: dict[int, list[tuple[float, int, list[float]]]] = defaultdict(list)
        for number, entry in enumerate(entries):
            try:
                image, category, score = int(entry["image_id"]), entry["category_id"], float(entry["score"])
                x, y, width, height = map(float, entry["bbox"])
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{file}: detection {number} is not in COCO's results format ({error!r}); each needs image_id, "
                    "category_id, bbox [x, y, width, height] and score"
                ) from error
            if not all(map(math.isfinite, (x, y, width, height, score))):
                raise UserError(f"{file}: detection {number} has a bbox or score that is not finite; remove it")
            if category in class_map.dataset_ids and width > 0 and height > 0:
                found[image].append((score, class_map.contiguous(category), [x, y, x + width, y + height]))
        if not found:
            raise UserError(
                f"{file} has no detection with one of the category ids {', '.join(map(str, class_map.dataset_ids))} of the "
                "student's classes; write the data set's own ids"
            )
        self.detections = {image: _detections(rows) for image, rows in found.items()}


def _detections(rows: list[tuple[float, int, list[float]]]) -> Detections:
    scores, labels, boxes = zip(*sorted(rows, key=lambda row: -row[0]))
    return Detections(torch.tensor(scores), torch.tensor(labels), torch.tensor(boxes))
